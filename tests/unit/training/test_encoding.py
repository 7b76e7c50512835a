from __future__ import annotations

import io
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.training.interrupt import Interruption
from truba_runner.training.keras.loop.callback_state import restore, states
from truba_runner.training.keras.loop.encoding import NoState, decode, encode
from truba_runner.training.ranks.checkpoints import newest
from truba_runner.training.ranks.group import Group
from truba_runner.training.saver import Background
from truba_runner.training.summaries import event_files

EVENTS = "events.out.tfevents"


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    encode(value).write(file)
    file.seek(0)
    return decode(file)


def test_a_state_comes_back_as_it_was() -> None:
    state = {
        "text": "ğ",
        "numbers": [0.1 + 0.2, -0.0, 1e300, 2**70, True, None, float("inf")],
        "a tuple": (1, (2.5, "x")),
        3: {"~array": 0, "~": 1},
        "nested": [{"a": np.arange(6).reshape(2, 3)}, np.float64(0.5), np.float32(0.1)],
        "empty": [{}, [], (), np.zeros((0, 3))],
        "random": random.getstate(),
        "numpy": np.random.get_state(),
        "others": [{1, 2}, frozenset({"x"}), b"\x00\xff", 1 - 2j, deque([1, (2,)], maxlen=4)],
    }
    back = through_a_file(state)
    np.testing.assert_equal(back, state)
    assert type(back["nested"][1]) is np.float64 and type(back["nested"][2]) is np.float32
    assert type(back["a tuple"]) is tuple and type(back["a tuple"][1]) is tuple
    assert back["others"] == state["others"] and back["others"][-1].maxlen == 4
    assert str(back["numbers"][1]) == "-0.0" and np.isnan(through_a_file([float("nan")])[0])


@pytest.mark.parametrize("name", ["bool", "int8", "uint32", "float16", "bfloat16", "float8_e4m3fn", "complex64", "<U3"])
def test_arrays_of_every_kind_come_back_bit_for_bit(name: str) -> None:
    pytest.importorskip("ml_dtypes")
    array = np.array([0, 1, 3]).astype(name)
    for sample in (array, array[1], array.reshape(3, 1)[::2], np.asfortranarray(np.tile(array, (2, 1)))):
        back = through_a_file({"x": sample})["x"]
        assert (back.dtype, back.shape, back.tobytes()) == (sample.dtype, sample.shape, sample.tobytes())


@pytest.mark.parametrize("value", [object(), np.array([object()]), {"x": [lambda: 0]}, {1, Position}])
def test_what_has_no_place_in_a_state_is_told(value: Any) -> None:
    with pytest.raises(NoState):
        encode(value)


def test_a_state_cut_short_is_not_taken_for_whole() -> None:
    file = io.BytesIO()
    encode(np.arange(100.0)).write(file)
    for length in (0, 5, 40, len(file.getvalue()) - 1):
        with pytest.raises(ValueError):
            decode(io.BytesIO(file.getvalue()[:length]))


class Counter:
    def __init__(self, count: int) -> None:
        self.counts = [count]

    def get_state(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def set_state(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"]


def test_callbacks_of_one_class_keep_apart_and_a_state_is_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [Counter(1), Counter(2)]
    saved = states(callbacks)
    callbacks[0].counts[0] = 7
    again = [Counter(0), Counter(0), Counter(9)]
    restore(again, saved)
    assert [callback.counts for callback in again] == [[1], [2], [9]]
    assert "the checkpoint has no state for the callback Counter 3: the callback starts anew" in capsys.readouterr().err


def test_event_files_are_cut_back_to_where_they_were(tmp_path: Path) -> None:
    old, new, other = (tmp_path / "train" / name for name in (f"{EVENTS}.1", f"{EVENTS}.2", "notes"))
    old.parent.mkdir()
    old.write_bytes(b"one")
    other.write_bytes(b"a user's")
    sizes = event_files.sizes(tmp_path)
    assert sizes == {f"train/{EVENTS}.1": 3}
    old.write_bytes(b"one and two")
    new.write_bytes(b"three")
    event_files.cut(tmp_path, sizes)
    assert (old.read_bytes(), other.read_bytes()) == (b"one", b"a user's")
    assert new.read_bytes() == b"", "a copy elsewhere is emptied too, and keeps what a purge takes away"


def test_background_work_never_overlaps_and_its_failure_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    background, running, most = Background(), [0], [0]

    def work() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1
        raise RuntimeError("mine")

    for _ in range(3):
        background.start(work)
    background.wait()
    assert (running, most) == ([0], [1])
    assert capsys.readouterr().err.count("RuntimeError: mine") == 3


class Told(Group):
    """What the second of two ranks hears, where rank 0 has taken the checkpoint of a position, or none."""

    def __init__(self, *values: int) -> None:
        super().__init__(Interruption(), rank=1, tasks=2)
        self.values = list(values)

    def from_rank_0(self, own: list[int]) -> list[int]:
        assert len(own) == len(self.values)
        return self.values


def test_every_rank_takes_the_checkpoint_that_rank_0_has_taken(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (3, 6):
        store.save(Position(0, step), encode({"step": step}).write)
    assert newest(Told(1, 0, 3), store, decode) == (Position(0, 3), {"step": 3})
    assert newest(Told(0, 0, 0), store, decode) is None
    (tmp_path / "checkpoint-000000-000000003.ckpt").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="SHA-256"):
        newest(Told(1, 0, 3), store, decode)
