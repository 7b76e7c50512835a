"""What a run tells of itself from one start to the next, and what its starts have cost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.rules.experiment import plan
from truba_runner.runs import restarts
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.progress import Progress
from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client, commands, jobs
from truba_runner.slurm.job_environment import Allocation
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.request import derive
from truba_runner.status import rows
from truba_runner.submission import prepared, settle, submission
from truba_runner.sweeps import packed_runs
from truba_runner.training.fastai.ranks import RankLost
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.why.table import meaning
from truba_runner.worker import failure
from truba_runner.worker import run as worker

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "mnist-00000000")
    made.create()
    made.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    return made


def started(run: RunDir, position: Position) -> Progress:
    """As the worker does it: the new record is not written before the one of the last start was counted."""
    progress = Progress(run, "7")
    progress.stand_at(position)
    restarts.begin(run, "7", position, Event())
    progress.update(epochs=9)
    return progress


def test_a_name_that_is_no_utf_8_can_be_told(run: RunDir) -> None:
    progress = started(run, Position(0, 0))
    told = failure.describe(Failed(os.fsdecode(b"g\xfcl_1.jpg is no image")), run.path)
    progress.update(state="failed", error=told)
    assert os.fsencode(run.progress().error.message) == b"g\xfcl_1.jpg is no image"


def place(run: RunDir) -> list[int | None]:
    record = run.progress()
    return [getattr(record, key) for key in ("epoch", "step", "steps_per_epoch")]


def test_the_position_is_kept_from_start_to_start(run: RunDir) -> None:
    progress = started(run, Position(0, 0))
    assert place(run) == [None, None, None]
    progress.update(steps_per_epoch=100)
    progress.epoch_end(3, 100, {"loss": 0.5})
    progress.update(epoch=4, step=20)
    progress = started(run, Position(3, 10))
    assert place(run) == [4, 10, 100] and run.progress().metrics == {"loss": 0.5}
    started(run, Position(4, 0))
    assert place(run) == [4, 100, 100], "an epoch that is over, not the next"
    assert started(run, Position(9, 0)).record.epoch == 9, "after the last there is no next one"


def test_a_run_that_comes_no_further_is_given_up_unless_it_was_told_to_stop_before_its_time(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of ten minutes, the signal a minute and a half before it, and a worker that begins a while later."""
    made = experiment("resources.time=10m")
    clock = iter(range(0, 10**9, 100_000))

    def start(seconds: float, told: bool) -> None:
        begun = next(clock)
        monkeypatch.setattr(time, "time", lambda: begun)
        restarts.begin(run, "7", Position(0, 0), Event())
        monkeypatch.setattr(time, "time", lambda: begun + seconds)
        if told:
            restarts.broken_off(run, "7", derive(made))

    for _ in range(5):
        start(seconds=400, told=True)
    start(seconds=1, told=False)
    start(seconds=60, told=True)
    start(seconds=460, told=True)  # Slurm's signal: the lr_find, say, takes longer than the limit.
    start(seconds=500, told=False)
    with pytest.raises(Failed, match="3 starts from epoch 1, step 0 made no progress") as raised:
        start(seconds=1, told=False)
    # By this `truba why` knows it, whatever the language that it was told in.
    assert failure.describe(raised.value, run.path).gave_up is True


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
    monkeypatch.setattr(jobs, "would_end_for_good", lambda job_id: False)
    interruption, here = Interruption(), Allocation("7", "mnist", 0, 1, on_slurm=True)
    for _ in range(4):
        progress = started(run, Position(0, 0))
        assert worker.after_interruption(run, here, progress, interruption) == 128 + signal.SIGTERM
    assert run.progress().state == "interrupted"


@pytest.fixture
def told(run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is told to Slurm and to a webhook, of a run whose first rank has started."""
    run.write_config(asdict(experiment()))
    started(run, Position(0, 0))
    told: list[object] = []
    monkeypatch.setattr(worker.notify, "tell", lambda run, state, more: told.append((state, more["error"]["message"])))
    return told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_left_behind_for_no_reason_goes_back_into_the_queue(
    run: RunDir, told: list[object], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Its node has gone, or a signal came while one of them had nothing to save."""
    monkeypatch.setattr(worker, "_REASON_SECONDS", 0.1)
    monkeypatch.setattr(commands, "forbid_requeue", told.append)
    here = Allocation("7", "mnist", rank, 2, on_slurm=True)
    status = worker.failed(run, here, Progress(run, "7", writes=rank == 0), RankLost("connection reset"))
    assert (status, told, run.progress().state) == (128 + signal.SIGKILL, [], "running")


@pytest.mark.parametrize("at_fault", [0, 1])
def test_a_rank_that_is_left_behind_by_one_at_fault_waits_for_its_reason(
    run: RunDir, told: list[object], monkeypatch: pytest.MonkeyPatch, at_fault: int
) -> None:
    """Which is told once Slurm will not requeue any more: when the one left behind ends, srun kills the other."""

    def ended(rank: int, error: Exception) -> int:
        here = Allocation("7", "mnist", rank, 2, on_slurm=True)
        return worker.failed(run, here, Progress(run, "7", writes=rank == 0), error)

    def forbid(job_id: str) -> None:
        time.sleep(0.1)  # Slurm takes its time: the other one looks meanwhile.
        told.append((job_id, waiting.is_alive(), run.progress().error))

    statuses: list[int] = []
    waiting = Thread(target=lambda: statuses.append(ended(1 - at_fault, RankLost("connection reset"))))
    monkeypatch.setattr(commands, "forbid_requeue", forbid)
    waiting.start()
    statuses.append(ended(at_fault, RuntimeError("out of luck")))
    waiting.join(10)
    assert statuses == [1, 1]
    assert told == [("7", True, None), ("failed", "out of luck")]
    record = run.progress()
    assert (record.state, record.error.message) == ("failed", "out of luck")


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

    def then(*_: object) -> ErrorRecord:
        lived.append(told_to_end())
        return ErrorRecord("RuntimeError", "no luck")

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(*after, then)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(run.path)
    run.write_config(asdict(experiment(cluster="local")))
    assert worker.main([str(run.path)]) == status
    assert run.progress().state == state and lived == [True]


@pytest.mark.usefixtures("own_signals")
def test_where_no_job_goes_back_to_the_queue_an_interrupted_run_ends_for_the_same_command_to_resume(
    run: RunDir,
    experiment: Callable[..., Experiment],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(*_: object) -> None:
        raise Interrupted

    def asked(*_: object) -> bool:
        raise AssertionError("Slurm was asked for a requeue")

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(restarts, "requeue", asked)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(run.path)
    run.write_config(asdict(experiment("cluster.requeue=false", "cluster.node_check.enabled=false")))
    assert worker.main([str(run.path)]) == 128 + signal.SIGTERM
    assert run.progress().state == "interrupted" and "the same command resumes the run" in capsys.readouterr().err
    assert not packed_runs._may_requeue(run)


@pytest.mark.usefixtures("own_signals")
def test_a_signal_of_which_a_framework_makes_another_error_is_no_fault(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorFlow's bindings do where an operation fails at the same moment."""

    def train(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
        except Interrupted as error:
            raise RuntimeError("UnavailableError REPLACED BY Interrupted") from error

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(restarts, "requeue", lambda *_: True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(run.path)
    run.write_config(asdict(experiment(cluster="local")))
    assert worker.main([str(run.path)]) == 0
    assert run.progress().state == "interrupted"


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
    run.append_submission(Event(Kind.RESTORED, position=[1, 80], seconds=0.5))
    assert restarts.account(run.submissions())["steps_lost"] == 10 + 70
    progress = started(run, Position(1, 80))  # Killed before its first step.
    run.append_submission(Event(Kind.RESTORED, position=[1, 80], seconds=0.5))
    assert restarts.account(run.submissions())["steps_lost"] == 80, "none of them is counted again"


def test_how_a_run_ended_is_told_where_the_disk_has_no_room_for_a_new_file(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    progress = started(run, Position(0, 0))
    progress.update(epoch=1, metrics={"accuracy": 0.123456789})
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    progress.update(epoch=2)
    assert run.progress().epoch == 1
    progress.record = replace(progress.record, metrics={})
    progress.update(state="failed", error={"type": "Failed", "message": "the disk is full"})
    assert rows.row(run.record(), {})["state"] == "FAILED" and "the disk is full" in rows.row(run.record(), {})["why"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_warned_of_once(
    run: RunDir, capsys: pytest.CaptureFixture[str], loss: float
) -> None:
    progress = started(run, Position(0, 0))
    progress.epoch_end(1, 10, {"loss": 0.5, "val_loss": loss})
    assert not progress.record.warning
    progress.epoch_end(2, 10, {"loss": loss})
    progress.epoch_end(3, 10, {"loss": loss})
    warned = capsys.readouterr().err
    assert warned.count("WARNING") == 1 and f"the training loss is {loss} at the end of epoch 2" in warned
    assert "at the end of epoch 2" in rows.row(run.record(), {"7": Job("7", "RUNNING")})["why"]
    run.write_result({"metrics": {}, "warning": progress.record.warning})
    assert "at the end of epoch 2" in rows.row(run.record(), {})["why"]


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


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        # Of a job, and of a task of an array, as Slurm 24.11 says it.
        ("Job is pending execution for job 7", False),
        ("7_0: Job is pending execution", False),
        ("Job has already finished for job 7", True),
    ],
)
def test_a_requeue_whose_answer_was_lost_is_done(said: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([("slurm_requeue error: Socket timed out on send/recv operation", True), (said, False)])

    def run(argv: list[str]) -> str:
        assert argv == ["scontrol", "requeue", "7"]
        message, transient = next(answers)
        raise client.SlurmError("scontrol", message, transient)

    monkeypatch.setattr(client, "run", run)
    monkeypatch.setattr(client, "BACKOFF_SECONDS", (0,))
    with pytest.raises(client.SlurmError) if fails else nullcontext():
        commands.requeue("7")
    assert next(answers, None) is None, "asked twice"


def test_a_job_that_slurm_has_forgotten_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "slurm_load_jobs error: Invalid job id specified"

    def query(argv: list[str]) -> str:
        raise client.SlurmError("squeue", told, transient=False, refused=True)

    monkeypatch.setattr(client, "query", query)
    assert jobs.state("7") == "" and not jobs.would_end_for_good("7")
    told = "Invalid user"
    with pytest.raises(client.SlurmError):
        jobs.state("7")


NAME = "mnist-00000000.first"
FIRST = [Event(Kind.INTENT, token="first", job_name=NAME)]
AGAIN = [Event(Kind.INTENT, token="again", job_name="mnist-00000000.again")]
RAN = [Event(Kind.SUBMITTED, token="first", job_id="7"), Event(Kind.STARTED, job_id="7", job_name=NAME)]


@pytest.mark.parametrize(
    ("told", "job_name", "trains"),
    [
        (FIRST, NAME, True),
        ([*FIRST, Event(Kind.LOST, token="first")], NAME, True),
        ([*FIRST, Event(Kind.LOST, token="first"), *AGAIN], NAME, False),
        # It had failed, and was requeued by an administrator; the other is not on record yet, or waits.
        ([*FIRST, *RAN, *AGAIN], NAME, False),
        ([*FIRST, *RAN, *AGAIN, Event(Kind.SUBMITTED, token="again", job_id="8")], NAME, False),
        ([*FIRST, *RAN, Event(Kind.LOCAL, job_id="local-1")], NAME, False),
        ([*FIRST, *AGAIN, Event(Kind.REFUSED, token="again")], NAME, True),
        # The run directory was taken away while the job waited.
        (AGAIN, NAME, False),
        ([*FIRST, *RAN, *AGAIN], "mnist-x2.first", True),
        ([replace(FIRST[0], job_name="mnist-x2.first"), *AGAIN], "mnist-x2.first", False),
        ([*FIRST, *RAN], "a name of its owner's", True),
    ],
)
def test_a_job_leaves_a_run_alone_that_was_submitted_again(
    tmp_path: Path, experiment: Callable[..., Experiment], told: list[dict[str, Any]], job_name: str, trains: bool
) -> None:
    unchecked = experiment("cluster.node_check.enabled=false")
    made = RunDir(tmp_path / "mnist-00000000")
    made.create()
    for event in told:
        made.append_submission(event)
    here = Allocation("7", job_name, 0, 1, on_slurm=True)
    assert worker.begin(made, here, Position(0, 0), unchecked) == trains
    assert trains or made.submissions() == told
    # A local run is nobody else's.
    assert worker.begin(made, Allocation("local-1", "local-1", 0, 1, on_slurm=False), Position(0, 0), unchecked)


def test_a_job_is_looked_for_from_the_last_time_that_slurm_was_asked_for_it(
    run: RunDir, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment("cluster=truba")
    sent = submission.Submission(prepared.Prepared(made, run, plan(made).request, ROOT / "jobs" / "mnist.py"))
    clock = [1000.0]
    looks: list[float] = []

    def pause(seconds: float) -> None:
        clock[0] += seconds

    def silent(*_: object, **__: object) -> str:
        clock[0] += 60
        raise client.SlurmError("sbatch", "Socket timed out", transient=True)

    def look(name: str) -> list[str]:
        looks.append(clock[0])
        return ["8"] if clock[0] > last + 9 else []

    last = float("inf")
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: clock[0])
    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(commands, "sbatch", silent)
    monkeypatch.setattr(jobs, "jobs_named", look)
    intent = Event(Kind.INTENT, time=clock[0], token=sent.token, job_name=sent.job_name)
    run.append_submission(intent)
    with pytest.raises(client.SlurmError):
        sent._sbatch("", 0)
    last = clock[0]
    assert last > 1300
    assert settle.settle(run) == "8" and len(looks) > 10
    # And one that never comes is lost ten seconds after, not later.
    last = clock[0]
    run.append_submission(replace(intent, time=last, token="another"))
    monkeypatch.setattr(jobs, "jobs_named", lambda name: [])
    assert settle.settle(run) is None and last + 9 < clock[0] < last + 12
