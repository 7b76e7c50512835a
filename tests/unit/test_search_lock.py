"""A search's lock among processes: kept, let go, broken where its owner is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from truba_runner.errors import Failed
from truba_runner.search import lock as locks
from truba_runner.search.lock import FcntlLock, FileLock, fcntl_works, lock_for, mount_options

KINDS = ["fcntl", "file"]

# Adds 1 to a number in a file, so that two at a time would lose one.
ADDER = """
import sys, time
from pathlib import Path
from truba_runner.search.lock import lock_for
folder = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with lock_for(folder):
        number = int((folder / "number").read_text())
        time.sleep(0.001)
        (folder / "number").write_text(str(number + 1))
"""
HOLDER = """
import sys, time
from pathlib import Path
from truba_runner.search.lock import lock_for
with lock_for(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def python(program: str, *arguments: Any) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    holder = python(HOLDER, folder)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_at_a_time(tmp_path: Path, kind: str) -> None:
    lock_for(tmp_path, kind)
    (tmp_path / "number").write_text("0")
    adders = [python(ADDER, tmp_path, 40) for _ in range(4)]
    assert [adder.wait() for adder in adders] == [0] * 4
    for adder in adders:
        adder.communicate()
    assert (tmp_path / "number").read_text() == "160"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left lying about"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_left_by_a_dead_process_of_this_machine_is_free_at_once(tmp_path: Path, kind: str) -> None:
    lock_for(tmp_path, kind)
    end(held_by_another(tmp_path))
    started = time.monotonic()
    with lock_for(tmp_path) as lock:
        assert lock.held()
    assert time.monotonic() - started < locks.STALE_SECONDS


def test_a_lock_file_of_another_machine_is_broken_when_it_has_not_changed_for_long(tmp_path: Path) -> None:
    owner = tmp_path / "lock.owner"
    owner.write_text(json.dumps({"token": "x", "host": "another", "pid": 1, "namespace": 0}))
    with pytest.raises(Failed, match="another"), FileLock(owner, stale_seconds=30, wait_seconds=0.2):
        pass

    def touch() -> None:
        with suppress(FileNotFoundError):
            os.utime(owner)

    touched = threading.Timer(0.3, touch)
    touched.start()
    started = time.monotonic()
    with FileLock(owner, stale_seconds=0.5, wait_seconds=20) as lock:
        assert lock.held()
        # The owner's sign of life counts from when it was seen.
        assert time.monotonic() - started >= 0.5
    touched.join()
    assert not owner.exists()


def test_who_stood_still_for_too_long_learns_that_the_lock_is_lost(tmp_path: Path) -> None:
    slow = FileLock(tmp_path / "lock.owner", stale_seconds=60)
    with slow:
        # Broken by another machine, which could not see that this process lives.
        (tmp_path / "lock.owner").unlink()
        with FileLock(tmp_path / "lock.owner") as other:
            assert other.held() and not slow.held()
        assert not slow.held()


def test_leaving_does_not_take_away_the_lock_of_another(tmp_path: Path) -> None:
    slow = FileLock(tmp_path / "lock.owner")
    with slow:
        (tmp_path / "lock.owner").unlink()
        other = FileLock(tmp_path / "lock.owner")
        other.__enter__()
    assert other.held()
    other.__exit__()


@pytest.mark.parametrize("kind", KINDS)
def test_a_holder_that_is_stuck_is_named(tmp_path: Path, kind: str) -> None:
    lock_for(tmp_path, kind)
    holder = held_by_another(tmp_path)
    try:
        made = FcntlLock(tmp_path / "lock", 0.2) if kind == "fcntl" else FileLock(tmp_path / "lock.owner", 60, 0.2)
        with pytest.raises(Failed, match=str(holder.pid)), made:
            pass
    finally:
        end(holder)


def test_a_lock_is_held_through_a_signal_that_a_worker_notes(tmp_path: Path) -> None:
    lock_for(tmp_path, "fcntl")
    holder = held_by_another(tmp_path)
    seen: list[int] = []

    def tell() -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.3)
        holder.kill()

    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        teller = threading.Timer(0.1, tell)
        teller.start()
        with lock_for(tmp_path) as lock:
            assert lock.held() and seen
    finally:
        teller.join()
        signal.signal(signal.SIGUSR2, before)
        end(holder)


def test_auto_takes_the_kernels_lock_where_two_processes_heed_it(tmp_path: Path) -> None:
    assert fcntl_works(tmp_path)
    lock_for(tmp_path)
    assert (tmp_path / "lock.kind").read_text() == "fcntl"
    assert {path.name for path in tmp_path.iterdir()} == {"lock.kind"}


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), PermissionError(13, "Permission denied")])
def test_auto_takes_a_file_where_locks_are_not_there(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock_for(tmp_path)
    assert (tmp_path / "lock.kind").read_text() == "file"
    # The first decides, for all.
    monkeypatch.undo()
    with lock_for(tmp_path, "fcntl"):
        assert (tmp_path / "lock.owner").exists()


def test_auto_takes_a_file_where_each_node_has_locks_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "mount_options", lambda folder: ["lustre", "rw", "localflock"])
    lock_for(tmp_path)
    assert (tmp_path / "lock.kind").read_text() == "file"


def test_a_node_where_the_kind_does_not_work_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_for(tmp_path, "fcntl")
    locks.check(tmp_path)
    monkeypatch.setattr(locks, "mount_options", lambda folder: ["nfs", "nolock"])
    with pytest.raises(Failed, match="sweep.lock=file"):
        locks.check(tmp_path)


def test_the_options_are_those_of_the_mount_that_a_folder_lies_on(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        f"disk / ext4 rw,relatime 0 0\nmgs:/arf {tmp_path} lustre rw,flock 0 0\nserver:/x {tmp_path}2 nfs nolock 0 0\n"
    )
    assert mount_options(tmp_path / "runs", table) == ["lustre", "rw", "flock"]
    assert mount_options(Path("/usr"), table) == ["ext4", "rw", "relatime"]
