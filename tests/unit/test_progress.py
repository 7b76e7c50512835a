"""What a run tells of itself from one start to the next, and what its starts have cost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from truba_runner import restarts, scheduler, worker
from truba_runner.allocation import Allocation
from truba_runner.checkpoint import Position
from truba_runner.commands import status
from truba_runner.config import Experiment
from truba_runner.errors import Failed
from truba_runner.interrupt import Interrupted, Interruption
from truba_runner.progress import Progress
from truba_runner.request import derive
from truba_runner.rundir import RunDir
from truba_runner.scheduler import Job
from truba_runner.why.table import meaning


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "mnist-00000000")
    made.create()
    made.append_submission({"event": "submitted", "token": "t", "job_id": "7"})
    return made


def started(run: RunDir, position: Position) -> Progress:
    """As the worker does it: the new record is not written before the one of the last start was counted."""
    progress = Progress(run, "7")
    progress.stand_at(position)
    restarts.begin(run, "7", position, {})
    progress.update(epochs=9)
    return progress


def test_a_name_that_is_no_utf_8_can_be_told(run: RunDir) -> None:
    progress = started(run, Position(0, 0))
    told = worker.describe(Failed(os.fsdecode(b"g\xfcl_1.jpg is no image")), run.path)
    progress.update(state="failed", error=told)
    assert os.fsencode(run.progress()["error"]["message"]) == b"g\xfcl_1.jpg is no image"


def place(run: RunDir) -> list[int | None]:
    record = run.progress()
    return [record.get(key) for key in ("epoch", "step", "steps_per_epoch")]


def test_the_position_is_kept_from_start_to_start(run: RunDir) -> None:
    progress = started(run, Position(0, 0))
    assert place(run) == [None, None, None]
    progress.update(steps_per_epoch=100)
    progress.epoch_end(3, 100, {"loss": 0.5})
    progress.update(epoch=4, step=20)
    progress = started(run, Position(3, 10))
    assert place(run) == [4, 10, 100] and run.progress()["metrics"] == {"loss": 0.5}
    started(run, Position(4, 0))
    assert place(run) == [4, 100, 100], "an epoch that is over, not the next"
    assert started(run, Position(9, 0)).record["epoch"] == 9, "after the last there is no next one"


def test_a_run_that_comes_no_further_is_given_up_unless_it_was_told_to_stop_before_its_time(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of ten minutes, the signal a minute and a half before it, and a worker that begins a while later."""
    made = experiment("resources.time=10m")
    clock = iter(range(0, 10**9, 100_000))

    def start(seconds: float, told: bool) -> None:
        begun = next(clock)
        monkeypatch.setattr(time, "time", lambda: begun)
        restarts.begin(run, "7", Position(0, 0), {})
        monkeypatch.setattr(time, "time", lambda: begun + seconds)
        if told:
            restarts.broken_off(run, "7", derive(made))

    for _ in range(5):
        start(seconds=400, told=True)
    start(seconds=1, told=False)
    start(seconds=60, told=True)
    start(seconds=460, told=True)  # Slurm's signal: the lr_find, say, takes longer than the limit.
    start(seconds=500, told=False)
    with pytest.raises(Failed, match="3 starts from epoch 1, step 0 came no further") as raised:
        start(seconds=1, told=False)
    # By this `truba why` knows it, whatever the language that it was told in.
    assert worker.describe(raised.value, run.path)["gave_up"] is True


@pytest.mark.parametrize("language", ["en", "tr"])
def test_why_knows_a_loss_that_is_no_number_from_the_log(
    run: RunDir, language: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRUBA_LANG", language)
    Progress(run, "7").epoch_end(1, 10, {"loss": float("nan")})
    found = meaning("log", capfd.readouterr().err)
    assert found is not None and found.row.id == "no-number"


def test_a_worker_that_was_told_to_stop_puts_it_on_record(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preempted: Slurm brings it back by itself."""
    run.write_config(asdict(experiment()))
    monkeypatch.setattr(scheduler, "would_end_for_good", lambda job_id: False)
    interruption, here = Interruption(), Allocation("7", "mnist", 0, 1, on_slurm=True)
    for _ in range(4):
        progress = started(run, Position(0, 0))
        assert worker.after_interruption(run, here, progress, interruption) == 128 + signal.SIGTERM
    assert run.progress()["state"] == "interrupted"


def told_to_end() -> bool:
    """This process and a command that it starts are; whether that lived on. Slurm does so at a requeue, to all."""
    os.kill(os.getpid(), signal.SIGTERM)
    command = subprocess.run(["sh", "-c", "kill -TERM $$; echo lives"], capture_output=True, check=False)
    return command.stdout == b"lives\n"


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("outcome", "after", "status", "state"),
    [
        ({"metrics": {}}, (RunDir, "write_result"), 0, "finished"),
        (RuntimeError("no luck"), (worker, "describe"), 1, "failed"),
        (Interrupted(), (restarts, "requeue"), 0, "interrupted"),
    ],
)
def test_a_signal_once_the_outcome_is_decided_changes_nothing(
    run: RunDir,
    experiment: Callable[..., Experiment],
    monkeypatch: pytest.MonkeyPatch,
    outcome: Any,
    after: tuple[Any, str],
    status: int,
    state: str,
) -> None:
    lived = []

    def train(*_: object) -> dict[str, Any]:
        if isinstance(outcome, BaseException):
            raise outcome
        return dict(outcome)

    def then(*_: object) -> dict[str, bool]:
        lived.append(told_to_end())
        return {"queued again": True}

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(*after, then)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(run.path)
    run.write_config(asdict(experiment(cluster="local")))
    assert worker.main([str(run.path)]) == status
    assert run.progress()["state"] == state and lived == [True]


@pytest.mark.usefixtures("own_signals")
def test_a_run_that_comes_back_into_the_queue_when_it_has_ended_is_not_trained_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_result({"metrics": {"loss": 0.5}})
    before = sorted(run.path.rglob("*")), run.submissions()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(run.path)
    assert worker.main([str(run.path)]) == 0
    assert (sorted(run.path.rglob("*")), run.submissions()) == before


def test_a_damaged_checkpoint_that_is_passed_over_costs_the_steps_up_to_the_one_before(run: RunDir) -> None:
    progress = started(run, Position(0, 0))
    progress.update(epoch=3, step=60, steps_per_epoch=100)
    progress = started(run, Position(2, 50))  # By the newest file's name, unread: 10 steps.
    progress.stand_at(Position(1, 80))
    progress.update()
    run.append_submission({"event": "restored", "position": [1, 80], "seconds": 0.5})
    assert restarts.account(run)["steps_lost"] == 10 + 70
    progress = started(run, Position(1, 80))  # Killed before its first step.
    run.append_submission({"event": "restored", "position": [1, 80], "seconds": 0.5})
    assert restarts.account(run)["steps_lost"] == 80, "none of them is counted again"


def test_how_a_run_ended_is_told_where_the_disk_has_no_room_for_a_new_file(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    progress = started(run, Position(0, 0))
    progress.update(epoch=1, metrics={"accuracy": 0.123456789})
    monkeypatch.setattr(tempfile, "mkstemp", full)
    progress.update(epoch=2)
    assert run.progress()["epoch"] == 1
    progress.record["metrics"] = {}
    progress.update(state="failed", error={"type": "Failed", "message": "the disk is full"})
    assert status.row(run, {})["state"] == "FAILED" and "the disk is full" in status.row(run, {})["why"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_warned_of_once(
    run: RunDir, capsys: pytest.CaptureFixture[str], loss: float
) -> None:
    progress = started(run, Position(0, 0))
    progress.epoch_end(1, 10, {"loss": 0.5, "val_loss": loss})
    assert "warning" not in progress.record
    progress.epoch_end(2, 10, {"loss": loss})
    progress.epoch_end(3, 10, {"loss": loss})
    warned = capsys.readouterr().err
    assert warned.count("WARNING") == 1 and f"the training loss is {loss} at the end of epoch 2" in warned
    assert "at the end of epoch 2" in status.row(run, {"7": Job("7", "RUNNING")})["why"]
    run.write_result({"metrics": {}, "warning": progress.record["warning"]})
    assert "at the end of epoch 2" in status.row(run, {})["why"]


def test_the_warning_stands_in_the_result(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(experiment: Experiment, run: RunDir, progress: Progress, *_: object) -> dict[str, object]:
        progress.epoch_end(1, 10, {"loss": float("nan")})
        return {"metrics": {"loss": float("nan")}}

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(Interruption, "listen", lambda self: None)
    monkeypatch.setenv("TRUBA_JOB_ID", "local-1")
    monkeypatch.chdir(run.path)  # Else the worker's own change of folder would outlast the test.
    run.write_config(asdict(experiment(cluster="local")))
    assert worker.main([str(run.path)]) == 0, "it ends well all the same"
    assert "at the end of epoch 1" in run.result()["warning"]
