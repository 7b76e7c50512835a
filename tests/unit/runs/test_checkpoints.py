from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from truba_runner.runs.checkpoints import BEST, CheckpointStore, Position


def save(store: CheckpointStore, epoch: int, step: int = 0, best: bool = False) -> bool:
    return store.save(Position(epoch, step), lambda file: file.write(content(epoch, step)) and None, best)  # type: ignore[func-returns-value]


def content(epoch: int, step: int = 0) -> bytes:
    return f"{epoch}:{step};".encode() * 100


def read(file: IO[bytes]) -> bytes:
    return file.read().removesuffix(b"")[:-32]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store._folder.iterdir())


def test_the_newest_is_by_epoch_then_step(store: CheckpointStore) -> None:
    assert store.newest(read) is None and store.position() == Position(0, 0)
    save(store, 1, 900)
    save(store, 2, 5)
    assert store.newest(read) == (Position(2, 5), content(2, 5))
    assert store.position() == Position(2, 5)


def test_the_newest_two_and_the_best_are_kept(store: CheckpointStore) -> None:
    for epoch in range(1, 6):
        save(store, epoch, best=epoch == 2)
    assert names(store) == [BEST, "checkpoint-000004-000000000.ckpt", "checkpoint-000005-000000000.ckpt"]
    assert store.best(read) == content(2)


@pytest.mark.parametrize("position", [0, 50, -1, -33])
def test_one_altered_byte_is_noticed_and_the_one_before_taken(
    store: CheckpointStore, position: int, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    save(store, 2)
    newest = store._folder / "checkpoint-000002-000000000.ckpt"
    data = bytearray(newest.read_bytes())
    data[position] ^= 1
    newest.write_bytes(data)
    assert store.newest(read) == (Position(1, 0), content(1))
    assert "damaged" in capsys.readouterr().err
    # Out of the way, it pushes out no good one.
    save(store, 3)
    assert store.newest(read) == (Position(3, 0), content(3))
    assert "checkpoint-000001-000000000.ckpt" in names(store)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 200])
def test_a_file_cut_short_is_passed_over(store: CheckpointStore, length: int) -> None:
    save(store, 1)
    save(store, 2)
    os.truncate(store._folder / "checkpoint-000002-000000000.ckpt", length)
    assert store.newest(read) == (Position(1, 0), content(1))


def test_a_full_disk_stops_nothing_and_costs_no_checkpoint(
    store: CheckpointStore, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)

    def full(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert store.save(Position(2, 0), full) is False
    assert "training continues" in capsys.readouterr().err
    assert names(store) == ["checkpoint-000001-000000000.ckpt"]
    assert store.newest(read) == (Position(1, 0), content(1))


def test_what_a_full_disk_refused_is_written_when_there_is_room_again(store: CheckpointStore) -> None:
    attempts = 0

    def full_at_first(file: IO[bytes]) -> None:
        nonlocal attempts
        attempts += 1
        file.write(content(2))
        if attempts == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    save(store, 1)
    assert store.save(Position(2, 0), full_at_first, best=True) is False
    store.retry()
    assert store.newest(read) == (Position(2, 0), content(2)) and store.best(read) == content(2)
    store.retry()
    assert attempts == 2, "what is written is not written again"


KILLED = """
import os, signal, sys
from pathlib import Path
from truba_runner.runs.checkpoints import CheckpointStore, Position
def write(file):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
CheckpointStore(Path(sys.argv[1])).save(Position(2, 0), write)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(store: CheckpointStore) -> None:
    save(store, 1)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store._folder)])
    assert killed.returncode == -signal.SIGKILL
    assert store.newest(read) == (Position(1, 0), content(1))
    save(store, 3)
    save(store, 4)
    assert names(store)[-2:] == ["checkpoint-000003-000000000.ckpt", "checkpoint-000004-000000000.ckpt"]
    assert not [name for name in names(store) if name.startswith(".")], "what a kill left is cleared away"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    program = f"""
import os, sys
from pathlib import Path
from truba_runner.runs.checkpoints import CheckpointStore, Position
store = CheckpointStore(Path({str(disk)!r}))
megabyte = os.urandom(1 << 20)
def write(file):
    for _ in range(3):
        file.write(megabyte)
saved = [store.save(Position(epoch, 0), write) for epoch in (1, 2, 3)]
position, content = store.newest(lambda file: file.read())
print(saved, position.epoch, len(content) == (3 << 20) + 32)
"""
    command = f'mount -t tmpfs -o size=5m none {disk} && exec {sys.executable} -c "$1"'
    argv = ["unshare", "--mount", "sh", "-c", command, "sh", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, False, False] 1 True", done.stderr
    assert "training continues" in done.stderr
