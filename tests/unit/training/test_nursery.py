"""Processes that are forked ready-made: what they are given, how they end, what becomes of them with their parents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from truba_runner.errors import Failed
from truba_runner.training.nursery import Call, Nursery

WORK = """
import atexit, os, sys, time

if "OF_THE_PARENT" in os.environ:
    atexit.register(os.unlink, os.environ["OF_THE_PARENT"])

def answer(number):
    return {"sum": number + 1, "imported": "decimal" in sys.modules, "variable": os.environ.get("OWN")}

def status(number):
    print("printed")
    return number

def fail():
    raise ValueError("on purpose")

def tidy(file, then):
    atexit.register(os.unlink, file)
    return fail() if then == "fails" else then

def sleep(file):
    open(file, "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    (tmp_path / "work.py").write_text(WORK)
    made = Nursery({"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    yield made
    made.close()


def ended(nursery: Nursery) -> dict[str, Any]:
    found = nursery.ended(240)
    assert found is not None
    return found


def test_a_process_gives_its_value_or_its_status_and_has_its_imports(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start(Call("work", "answer", [1], imports=["decimal"], environment={"OWN": "x"}))
    assert ended(nursery) == {"status": 0, "value": {"sum": 2, "imported": True, "variable": "x"}}
    # What one is given is not the next one's.
    nursery.start(Call("work", "answer", [5]))
    assert ended(nursery)["value"] == {"sum": 6, "imported": True, "variable": None}
    nursery.start(Call("work", "status", [3], log=str(tmp_path / "log")))
    assert ended(nursery) == {"status": 3, "value": None} and (tmp_path / "log").read_text() == "printed\n"
    nursery.start(Call("work", "fail", log=str(tmp_path / "log")))
    assert ended(nursery)["status"] == 1 and "on purpose" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("then", [0, "value", "fails"])
def test_a_process_tidies_up_after_itself_alone(tmp_path: Path, then: int | str) -> None:
    """As TensorFlow does, of the files that it traces functions into: a few for each trial."""
    (tmp_path / "work.py").write_text(WORK)
    (of_parent := tmp_path / "parent").touch()
    (own := tmp_path / "own").touch()
    made = Nursery({"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "OF_THE_PARENT": str(of_parent)})
    made.start(Call("work", "tidy", [str(own), then], imports=["work"]))
    ended(made)
    made.close()
    assert of_parent.exists() and not own.exists()


def test_one_that_ends_before_its_id_was_read_is_heard_of(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    nursery.start(Call("work", "status", [0]))
    ended(nursery)
    answer = nursery._answer

    def late() -> dict[str, Any]:
        assert nursery._socket is not None
        while nursery._socket.recv(1 << 16, socket.MSG_PEEK).count(b"\n") < 2:
            pass
        return answer()

    with monkeypatch.context() as patched:
        patched.setattr(nursery, "_answer", late)
        nursery.start(Call("work", "status", [3]))
    assert nursery.ended(0) == {"status": 3, "value": None}


def test_an_import_that_fails_is_told_of_and_ends_nothing(nursery: Nursery) -> None:
    with pytest.raises(Failed, match="no_such_module"):
        nursery.start(Call("work", "answer", [1], imports=["no_such_module"]))
    nursery.start(Call("work", "answer", [1]))
    assert ended(nursery)["value"]["sum"] == 2


def test_one_that_is_killed_is_told_of_and_the_next_one_starts(nursery: Nursery, tmp_path: Path) -> None:
    process = nursery.start(Call("work", "sleep", [str(tmp_path / "pid")]))
    assert nursery.ended(0.01) is None
    os.kill(process, signal.SIGKILL)
    assert ended(nursery)["status"] == -signal.SIGKILL
    nursery.start(Call("work", "answer", [1]))
    assert ended(nursery)["value"]["sum"] == 2


def test_a_closed_terminal_is_left_to_the_worker(nursery: Nursery, tmp_path: Path) -> None:
    """It tells each of the processes; the one that trains must come to save."""
    nursery.start(Call("work", "answer", [1]))
    ended(nursery)
    assert (parent := nursery._process) is not None
    trial = nursery.start(Call("work", "sleep", [str(tmp_path / "pid")]))
    os.kill(parent.pid, signal.SIGHUP)
    ignored = (Path("/proc") / str(trial) / "status").read_text().partition("SigIgn:")[2].split()[0]
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
    os.kill(trial, signal.SIGKILL)
    assert ended(nursery)["status"] == -signal.SIGKILL
    nursery.start(Call("work", "answer", [1]))
    assert ended(nursery)["value"]["sum"] == 2 and nursery._process is parent


@pytest.mark.parametrize("idle", [True, False])
def test_when_their_parent_is_killed_there_is_another(nursery: Nursery, tmp_path: Path, idle: bool) -> None:
    nursery.start(Call("work", "answer", [1]) if idle else Call("work", "sleep", [str(tmp_path / "pid")]))
    if idle:
        ended(nursery)
    assert nursery._process is not None
    nursery._process.kill()
    if not idle:
        assert ended(nursery)["status"] == -signal.SIGKILL
    nursery.start(Call("work", "answer", [1]))
    assert ended(nursery)["value"]["sum"] == 2


def test_all_of_them_die_with_the_worker(nursery: Nursery, tmp_path: Path) -> None:
    program = """
import sys, time
from truba_runner.training.nursery import Call, Nursery
nursery = Nursery({"PYTHONPATH": sys.argv[1]})
nursery.start(Call("work", "sleep", [sys.argv[2]]))
time.sleep(60)
"""
    path = nursery._environment["PYTHONPATH"]
    worker = subprocess.Popen([sys.executable, "-c", program, path, str(tmp_path / "pid")])
    deadline = time.monotonic() + 240
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    trial = Path("/proc") / (tmp_path / "pid").read_text()
    worker.kill()
    worker.wait()
    while trial.exists() and "\nState:\tZ" not in (trial / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
