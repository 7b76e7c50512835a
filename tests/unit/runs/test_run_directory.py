from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import folder_lock
from truba_runner.storage.files import write_atomically


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "mnist-00000000")
    made.create()
    return made


def test_only_the_owner_can_look_in(run: RunDir) -> None:
    assert run.path.stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_result({"loss": 1.0})

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(path.name for path in run.path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        run.write_result({"loss": 2.0})
    assert run.result() == {"loss": 1.0}
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_an_event_cut_short_costs_no_other(run: RunDir) -> None:
    run.append_submission(Event(Kind.INTENT, token="a"))
    with run.submissions_file.open("a") as file:
        file.write('{"event": "subm')  # A kill in the middle of a write.
    run.append_submission(Event(Kind.INTENT, token="b"))
    assert [event.token for event in run.submissions()] == ["a", "b"]


def test_a_disk_that_takes_a_part_of_an_event_says_so_and_costs_no_other(run: RunDir) -> None:
    run.append_submission(Event(Kind.INTENT, token="a"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.submissions_file.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            run.append_submission(Event(Kind.INTENT, token="b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(run.submissions_file)
    run.append_submission(Event(Kind.INTENT, token="c"))
    assert [event.token for event in run.submissions()] == ["a", "c"]


def test_history_has_a_column_for_every_metric_of_every_row(run: RunDir) -> None:
    run.write_history([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_loss": 0.3}])
    assert (run.path / "history.csv").read_text() == "epoch,loss,val_loss\n1,0.5,\n2,0.25,0.3\n"


def test_an_unreadable_record_counts_as_none(run: RunDir) -> None:
    (run.path / "progress.json").write_text('{"epoch": 1')
    assert not run.progress() and run.result() == {}


def test_config_reads_back(run: RunDir) -> None:
    config = {"name": "mnist", "train": {"optimizer": {"class_name": "SGD"}, "learning_rate": None}, "ü": "ğ"}
    run.write_config(config)
    assert run.read_config() == config


HOLD = """
import os, sys
from pathlib import Path
from truba_runner.storage.folder_lock import lock
import subprocess
with lock(Path(sys.argv[1])) as held:
    child = subprocess.Popen(["cat"], pass_fds=[held], stdin=0, stdout=subprocess.DEVNULL)
    print("held", flush=True)
    os._exit(9)  # As a kill does: the child lives on.
"""


def test_a_child_holds_the_lock_on_after_its_parent_was_killed(tmp_path: Path) -> None:
    import fcntl

    read, write = os.pipe()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=read, stdout=subprocess.PIPE)
    os.close(read)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    holder.stdout.close()
    assert holder.wait() == 9
    handle = os.open(tmp_path / ".lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(write)  # Ends the child.
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.close(handle)
    with folder_lock.lock(tmp_path):
        pass


def test_atomic_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two" and list(tmp_path.glob(".x*")) == []
