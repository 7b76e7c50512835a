"""The walk finds each piece of state once, says what cannot be saved, and puts all back; no framework is needed."""

from __future__ import annotations

import collections
import enum
import functools
import itertools
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truba_runner.code import job_module
from truba_runner.errors import Failed
from truba_runner.training.keras.loop.encoding import decode, encode
from truba_runner.training.walk.objects import Found, walk
from truba_runner.training.walk.report import Unsaved, refuse_lost
from truba_runner.training.walk.state import Snapshot, Start, fingerprint, put, read, write


class Phase(enum.Enum):
    COLD = "cold"
    WARM = "warm"


class Inner:
    seen = 0

    def __init__(self) -> None:
        self.best: Any = None
        self.stream = np.random.default_rng(1)


class Slotted:
    __slots__ = ("count", "stream")

    def __init__(self) -> None:
        self.count = 0
        self.stream = random.Random(1)


class Callback:
    """Holds a value of each kind that a checkpoint can hold."""

    def __init__(self) -> None:
        self.count, self.losses, self.names = 0, [1.0], {"a"}
        self.queue: collections.deque[int] = collections.deque([1, 2], maxlen=3)
        self.table: dict[Any, Any] = {"x": np.zeros(2), (1, 2): "pair"}
        self.average = np.zeros(3)
        self.phase = Phase.COLD
        self.inner, self.others = Inner(), [Inner(), Inner()]
        self.current = self.inner
        self.old = np.random.RandomState(1)
        self.slotted = Slotted()
        self.counted = counter()
        self.part = functools.partial(counter(), step=2)
        self.pair = ([1], Inner())
        self.flag, self.later = None, None

    def change(self) -> None:
        self.count += 1
        self.losses.append(0.5)
        self.names.add("b")
        self.queue.append(3)
        self.table["x"][0] = 7.0
        self.table[2] = [1, {2}]
        self.average[:] = 5.0
        self.phase = Phase.WARM
        self.inner.best, self.others[1].best = 0.25, [np.ones(2), np.ones(2)]
        self.current = self.others[0]
        self.slotted.count = 3
        self.counted()
        self.part()
        self.pair[0].append(2)
        self.later = [np.arange(3), None]
        self.new = "made since"
        for stream in (self.inner.stream, self.others[0].stream, self.old, self.slotted.stream):
            stream.random()
        Inner.seen += 1


def counter() -> Any:
    count, seen = 0, []

    def next_one(step: int = 1, cache: list[int] = []) -> int:  # noqa: B006
        nonlocal count
        count += step
        seen.append(count)
        cache.append(count)
        next_one.calls = len(seen)  # type: ignore[attr-defined]
        return count

    return next_one


def values_of(found: Found) -> dict[str, Any]:
    values = {path: slot.get() for path, slot in found.values.items()}
    return values | {path: read(piece) for path, piece in found.pieces.items()}


def through_a_checkpoint(value: Any) -> Any:
    import io

    file = io.BytesIO()
    encode(value).write(file)
    file.seek(0)
    return decode(file)


def test_all_that_has_changed_comes_back_in_a_new_start() -> None:
    changed = [Callback()]
    start = Start(walk({"callbacks": changed}))
    assert start.changed(walk({"callbacks": changed})) == {}, "nothing has changed yet"
    changed[0].change()
    found = walk({"callbacks": changed}, known=start.paths)
    streams = {path: read(piece) for path, piece in found.pieces.items()}
    saved = through_a_checkpoint({"values": start.changed(found), "links": start.moved(found), "streams": streams})

    Inner.seen = 0
    fresh = [Callback()]
    table, losses = fresh[0].table, fresh[0].losses
    again = walk({"callbacks": fresh})
    assert put(again, saved["values"], saved["links"]) == []
    for path, state in saved["streams"].items():
        write(again.pieces[path], state)

    np.testing.assert_equal(values_of(walk({"callbacks": fresh})), values_of(walk({"callbacks": changed})))
    one = fresh[0]
    assert one.current is one.others[0], "which object an attribute names is state too"
    assert one.table is table and one.losses is losses, "others may hold the same list: it is filled anew"
    assert (one.counted(), one.part()) == (2, 4), "what a function closes over"
    assert one.phase is Phase.WARM and one.queue.maxlen == 3 and one.new == "made since"
    assert one.inner.stream.random() == changed[0].inner.stream.random()


def test_what_has_not_changed_is_not_saved() -> None:
    here, there = Callback(), Callback()
    here.flag, there.flag = "/scratch/job-1", "/scratch/job-2"
    start = Start(walk({"callback": here}))
    here.count = 1
    saved = start.changed(walk({"callback": here}))
    assert list(saved) == ["callback.count"]
    put(walk({"callback": there}), saved, {})
    assert (there.count, there.flag) == (1, "/scratch/job-2"), "a path of another start stays that start's"


def test_a_module_of_the_users_is_state_and_an_installed_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("import json\nepoch = 0\nstream = __import__('random').Random(3)\n")
    (tmp_path / "walked.py").write_text(
        "import os, helpers_of_mine as helpers\nfrom json import dumps\nrate = 0.1\ntable = {}\n"
        "class Kept:\n    calls = 0\n"
    )
    job: Any = job_module.load(tmp_path / "walked.py")
    found = walk({"job": job})
    assert {"job.rate", "job.table", "job.Kept.calls", "job.helpers.epoch"} <= set(found.values)
    assert list(found.pieces) == ["job.helpers.stream"]
    assert not [path for path in found.objects if path.startswith(("job.os", "job.dumps", "job.helpers.json"))]
    start = Start(found)
    job.rate, job.helpers.epoch, job.Kept.calls = 0.2, 4, 5
    saved = start.changed(walk({"job": job}))
    job.rate, job.helpers.epoch, job.Kept.calls = 0.1, 0, 0
    assert put(walk({"job": job}), saved, {}) == []
    assert (job.rate, job.helpers.epoch, job.Kept.calls) == (0.2, 4, 5)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda folder: (folder / "notes").open("w"), "an open file"),
        (lambda folder: (number for number in range(3)), "a generator"),
        (lambda folder: itertools.cycle([1, 2]), "an iterator (cycle)"),
        (lambda folder: iter([1]), "an iterator (list_iterator)"),
    ],
)
def test_what_cannot_be_saved_is_named_once_by_its_path(
    made: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Callback()
    callback.later = {"deep": [made(tmp_path), Inner()]}  # type: ignore[assignment]
    unsaved = walk({"callbacks": [callback]}).unsaved
    assert list(unsaved) == ["callbacks[0].later['deep'][0]"] and word in unsaved["callbacks[0].later['deep'][0]"]
    reporter = Unsaved(strict=False)
    reporter.report(unsaved)
    reporter.report(unsaved)
    assert capsys.readouterr().err.count("WARNING: callbacks[0].later['deep'][0] is") == 1
    with pytest.raises(Failed, match="checkpoint.strict=true: callbacks"):
        Unsaved(strict=True).report(unsaved)
    if hasattr(callback.later["deep"][0], "close"):  # type: ignore[index]
        callback.later["deep"][0].close()  # type: ignore[index]


def test_an_object_that_is_made_in_mid_training_is_named_and_its_loss_refused() -> None:
    callback = Callback()
    start = Start(walk({"callbacks": [callback]}))
    callback.others.append(Inner())
    callback.later = Inner()  # type: ignore[assignment]
    found = walk({"callbacks": [callback]})
    assert start.made_since(found) == ["callbacks[0].later", "callbacks[0].others[2]"]
    callback.later.best = 3  # type: ignore[attr-defined]
    lost = put(walk({"callbacks": [Callback()]}), start.changed(walk({"callbacks": [callback]})), {})
    assert "callbacks[0].later.best" in lost
    with pytest.raises(Failed, match=r"holds the state of callbacks\[0\].later.best"):
        refuse_lost(["callbacks[0].later.best"])
    start.now_also(found)
    assert start.made_since(found) == [], "what the first step makes every start makes"


def test_what_walks_in_circles_ends_and_each_object_has_one_path() -> None:
    one, other = Inner(), Inner()
    one.best, other.best = other, one
    loop: list[Any] = [1]
    loop.append(loop)
    found = walk({"one": one, "other": other, "loop": [loop, one]})
    assert set(found.pieces) == {"one.stream", "one.best.stream"}


def test_a_walk_is_the_same_each_time() -> None:
    callback = Callback()
    assert list(walk({"c": callback}).values) == list(walk({"c": callback}).values)
    assert list(walk({"c": callback}).values) == list(walk({"c": Callback()}).values)


def test_a_framework_is_told_by_its_code_and_a_derived_class_by_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    framework = types.ModuleType("keras.made_up")
    code = "class Base:\n def __init__(self):\n  self.setting = 1\n def later(self):\n  self.cache = 2\n"
    exec(code, vars(framework))  # noqa: S102
    monkeypatch.setitem(sys.modules, "keras.made_up", framework)
    framework.Base.__module__ = "keras.made_up"

    class Derived(framework.Base):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.cache, self.mine = 3, 4

    assert list(walk({"plain": framework.Base()}).values) == []
    assert list(walk({"mine": Derived()}).values) == ["mine.mine"]


def test_a_snapshot_undoes_a_trial() -> None:
    callback = Callback()
    Inner.seen = 0
    before = values_of(walk({"c": callback}))
    snapshot = Snapshot(walk({"c": callback}))
    callback.change()
    snapshot.put_back()
    after = values_of(walk({"c": callback}))
    np.testing.assert_equal({path: after[path] for path in before}, before)
    assert callback.current is callback.inner


def test_a_fingerprint_sees_a_change_in_a_large_array_and_copies_nothing() -> None:
    large = np.zeros((1 << 15, 1 << 10), np.uint32)
    first = fingerprint(large)
    assert fingerprint(large) == first
    np.random.default_rng(0).shuffle(large[:10])
    assert fingerprint(large) == first
    large += 1
    assert fingerprint(large) != first
    assert fingerprint(list(range(50_000))) != fingerprint(list(range(50_001)))
    assert fingerprint(float("nan")) == fingerprint(float("nan"))
