"""A lock that is held elsewhere: who holds it is said soon, and the wait ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.errors import Failed, Refused
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import jobs
from truba_runner.storage import folder_lock, lock_waits
from truba_runner.storage.shared_lock import FcntlLock
from truba_runner.submission import settle

# Holds a runs folder until its input closes; killed, a child of it does.
HOLDS = """
import os, subprocess, sys
from pathlib import Path
from truba_runner.storage.folder_lock import lock
with lock(Path(sys.argv[1])) as held:
    child = subprocess.Popen(["cat"], pass_fds=[held], stdout=subprocess.DEVNULL) if sys.argv[2] == "child" else None
    print("held", flush=True)
    if child:
        os._exit(9)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder: Path, by: str = "itself") -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder), by], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock_waits.SAY_AFTER_SECONDS == 2 and folder_lock.LOCK_SECONDS <= 120
    monkeypatch.setattr(lock_waits, "SAY_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(folder_lock.lock.__wrapped__, "__defaults__", (0.2,))  # type: ignore[attr-defined]


def test_a_command_says_for_whom_it_waits_and_ends(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    arguments = ["+experiment=mnist", "cluster=local", "data.name=digits", f"cluster.runs_folder={runs}"]
    with held(runs) as holder:
        assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    begun = time.strftime("since %Y-%m-%d ")
    waits, ends = [line for line in said if str(holder.pid) in line]
    assert waits.startswith("waiting for ") and os.uname().nodename in waits and begun in waits
    assert "was not released within" in ends and begun in ends


def test_a_lock_that_is_let_go_meanwhile_is_had(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path) as holder:
        assert holder.stdin is not None
        holder.stdin.close()
        with folder_lock.lock(tmp_path, 60):
            assert json.loads((tmp_path / ".lock").read_bytes())["pid"] == os.getpid()


def test_that_a_child_of_a_killed_command_holds_it_is_said(tmp_path: Path, quick: None) -> None:
    with held(tmp_path, "child") as holder:
        holder.wait()
        with pytest.raises(Failed, match=f"that process {holder.pid} on .* started"), folder_lock.lock(tmp_path):
            pass


@pytest.mark.parametrize(
    "record", [b"", b"[" * 5000, b"akya1 7\n", b'{"pid": "x"}', b'{"pid": 1e400, "time": 1e400}', b"\xff\x00", b"[1]"]
)
def test_a_record_that_is_none_is_no_obstacle(
    tmp_path: Path, quick: None, record: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "sign", lambda handle: None)
    (tmp_path / ".lock").write_bytes(record)
    with folder_lock.lock(tmp_path), pytest.raises(Failed, match="another process|process"), folder_lock.lock(tmp_path):
        pass


@pytest.mark.parametrize("hours", [1, 10**6, -1])
def test_what_another_clock_has_put_into_the_future_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    monkeypatch.setattr(settle, "SETTLE_SECONDS", 0.3)
    looks: list[str] = []

    def none_found(name: str) -> list[str]:
        looks.append(name)
        assert len(looks) < 5, "it is waited for"
        return []

    monkeypatch.setattr(jobs, "jobs_named", none_found)
    run = RunDir(tmp_path / "mnist-1")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", job_name="mnist-1.t", time=time.time() + hours * 3600))
    assert settle.settle(run) is None
    assert looks
    assert run.submissions()[-1].kind == "lost"


# -- what has the name of a lock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "dangling", "second name", "pipe", "folder"])
@pytest.mark.parametrize("kind", [folder_lock.lock, lambda folder: FcntlLock(folder / ".lock")], ids=["runs", "search"])
def test_a_lock_is_written_into_nothing_else(
    tmp_path: Path, how: str, kind: Callable[[Path], contextlib.AbstractContextManager[object]]
) -> None:
    thesis, lock = tmp_path / "thesis", tmp_path / "runs" / ".lock"
    lock.parent.mkdir()
    thesis.write_text("years of work")
    made: dict[str, Callable[[], object]] = {
        "link": lambda: lock.symlink_to(thesis),
        "dangling": lambda: lock.symlink_to(tmp_path / "nothing"),
        "second name": lambda: os.link(thesis, lock),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }
    made[how]()
    with pytest.raises(Failed, match=f"{lock} should be a lock file"), kind(lock.parent):
        pass
    assert thesis.read_text() == "years of work" and not (tmp_path / "nothing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for two users")
def test_a_lock_of_anothers_is_refused_and_ones_own_is_closed_to_others(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch(0o644)
    with folder_lock.lock(tmp_path):
        assert lock.stat().st_mode & 0o777 == 0o600
    os.chown(lock, 40_002, 40_002)
    with pytest.raises(Refused, match=r"\.lock: it belongs to uid 40002 \(mode 0600\)"), folder_lock.lock(tmp_path):
        pass
