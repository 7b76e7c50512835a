"""What a job executes: `python -m truba_runner.worker RUN_DIR` reads the run directory, trains, and writes the result.

It needs neither Hydra nor submitit, and starts from an address alone, so the job's Python may be another than the
login node's.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner import (
    allocation,
    backends,
    drill,
    full_disk,
    lr_find,
    node_folder,
    notify,
    private,
    request,
    restarts,
    scheduler,
    submitted_code,
    verify,
)
from truba_runner.backends import hparams
from truba_runner.checkpoint import CheckpointStore, Position
from truba_runner.config import Experiment, experiment_from
from truba_runner.errors import Failed
from truba_runner.interrupt import Interrupted, Interruption, leave
from truba_runner.language import _
from truba_runner.progress import Progress
from truba_runner.rundir import RunDir
from truba_runner.submitted_code import SubmittedCode
from truba_runner.sweeps import canary
from truba_runner.sweeps.record import sweep_of

# What TensorFlow, and our own ranks of fastai, raise on those that are left behind.
_OTHERS_FAULT = {"UnavailableError", "AbortedError", "CancelledError", "RankLost"}
# One that has raised forbids the requeue, and then tells why: so long the others wait for it.
_REASON_SECONDS = 15.0


def main(arguments: list[str]) -> int:
    """Trains the run at `arguments[0]`; 0: it has a result or is queued again, 1: it raised, 143: it was ended."""
    run = RunDir(Path(arguments[0]).resolve())
    here = allocation.current()
    if private.refused([run.path]):
        return 1
    with SubmittedCode() as code:
        return _main(run, here, Interruption(), code)


def _main(run: RunDir, here: allocation.Allocation, interruption: Interruption, code: SubmittedCode) -> int:
    # As stderr does it already: the log may name a file whose name is no UTF-8.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    progress = Progress(run, here.job_id, writes=here.rank == 0)
    try:
        interruption.listen()
        os.chdir(run.path)
        if run.result():
            return 0  # It came back into the queue when it had ended.
        position = CheckpointStore(run.checkpoints).position()
        if here.rank == 0:
            progress.stand_at(position)
        if here.rank == 0 and not begin(run, here, position):
            return 0
        if here.rank and claimed_by(run, here) != here.job_id:
            return 0  # As rank 0 does: it must not be waited for.
        experiment = experiment_from(run.read_config())
        progress.update(epochs=experiment.train.epochs)
        progress.epoch_watcher = canary.watcher(run)
        if here.rank == 0:
            # Which start this is it has put on record itself; the others follow it.
            progress.watcher = drill.saboteur(experiment.drill, start=restarts.account(run)["restarts"])
        with interruption.recognised():
            result = _train(experiment, run, progress, here, interruption, code)
        interruption.decided()
        if here.rank == 0:
            record = {"data": _data_record(experiment), "job_id": here.job_id, **restarts.account(run)}
            record.update(verify.record(run))
            verify.forget(run, here)
            warned = {"warning": progress.record["warning"]} if "warning" in progress.record else {}
            run.write_result({**result, **record, **warned})
        progress.update(state="finished", metrics=result.get("metrics", {}))
        if here.rank == 0:
            canary.lived(run)
            _write_settings(run, experiment, result.get("metrics", {}))
            if sweep_of(run):  # Of a thousand runs each leaves few files.
                CheckpointStore(run.checkpoints).keep_the_best_alone()
            notify.tell(run, "finished", {"metrics": result.get("metrics", {})})
    except Interrupted:
        return after_interruption(run, here, progress, interruption)
    except BaseException as error:
        interruption.decided()
        return failed(run, here, progress, error, code)
    return 0


def begin(run: RunDir, here: allocation.Allocation, position: Position) -> bool:
    """Records the start from a position; False where this submission is another job's.

    Raises:
        Failed: as `restarts.begin`.
    """
    if (other := claimed_by(run, here)) is not None:
        about = {"job_name": here.job_name, "host": platform.node(), "python": platform.python_version()}
        about["job_sha256"] = submitted_code.sha256(run.submitted())
        restarts.begin(run, here.job_id, position, about)
        if (other := claimed_by(run, here)) == here.job_id:
            return True
        run.append_submission({"event": "duplicate", "job_id": here.job_id})
    if other is None:
        told = _("{run} is another submission's by now; there is nothing to do", run=run.id)
    else:
        told = _(
            "this submission is job {other}'s already; there is nothing to do for {job_id}",
            other=other,
            job_id=here.job_id,
        )
    print(told, flush=True)
    return False


def _train(
    experiment: Experiment,
    run: RunDir,
    progress: Progress,
    here: allocation.Allocation,
    interruption: Interruption,
    code: SubmittedCode,
) -> dict[str, Any]:
    told = _(
        # why/case.py knows a start by it, in each language.
        "run {run}, job {job_id}, on {node}, data {data}",
        run=run.id,
        job_id=here.job_id,
        node=platform.node(),
        data=experiment.data.name,
    )
    print(told, flush=True)
    finds = experiment.sweep.kind == lr_find.KIND
    if not finds and verify.is_due(run, experiment):
        # No framework is imported yet, and the GPUs are free.
        verify.verify(run, experiment, here)
    # The backend first: it sets up its framework, which the job then imports.
    work = backends.load(experiment.job.backend, "find" if finds else "train")
    record = run.submitted()
    if submitted_code.sha256(record) != record.get("job_sha256"):
        told = _("{file} has changed since it was submitted", file=record["job_file"])
        print(_("WARNING: {text}", text=told), file=sys.stderr, flush=True)
    job = code.load(record, node_folder.scratch_of(experiment))
    return work(backends.Context(experiment, job, run, progress, interruption, here.rank, here.tasks))


def after_interruption(run: RunDir, here: allocation.Allocation, progress: Progress, interruption: Interruption) -> int:
    """The state is on disk: back into the queue, or out."""
    interruption.decided()
    progress.update(state="interrupted")
    if not here.on_slurm:
        return 128 + signal.SIGTERM
    if here.rank:
        return 0  # Rank 0 speaks for the job: a bad end here would have srun kill it meanwhile.
    experiment = experiment_from(run.read_config())
    most = experiment.resources.max_requeues
    with suppress(OSError):  # On a full disk it counts as a start in vain.
        restarts.broken_off(run, here.job_id, request.derive(experiment))
    try:
        requeued = restarts.requeue(run, here.job_id, most, here.in_crew)
    except (Failed, scheduler.SlurmError) as error:
        return failed(run, here, progress, error)
    print(_("back in the queue") if requeued else _("interrupted"), file=sys.stderr, flush=True)
    if requeued and here.in_crew:
        return restarts.REQUEUE_STATUS
    return 0 if requeued else 128 + signal.SIGTERM


def failed(
    run: RunDir,
    here: allocation.Allocation,
    progress: Progress,
    error: BaseException,
    code: SubmittedCode | None = None,
) -> int:
    """Puts on record what ended the run, and tells whoever waits for it; `code`: what it has trained."""
    error = full_disk.explained(error, run)
    own = code.own if code else str
    record = describe(error, Path(run.submitted().get("job_file", "/")).parent, own)
    others = here.tasks > 1 and type(error).__name__ in _OTHERS_FAULT
    if not others:
        if here.on_slurm and here.tasks > 1:
            _end_for_all(here)
        progress.update(state="failed", error=record)
        if here.rank:
            progress.tell_for_rank_0()
    with suppress(OSError):  # The log may be on a full disk too.
        if isinstance(error, Failed):
            print(own(str(error)), file=sys.stderr, flush=True)
        else:
            print_traceback(error, own)
    if others:
        if not (told := _anothers_reason(run)):
            print(_("another rank has ended, and none has failed: the job is to go on in the queue"), file=sys.stderr)
            return 128 + signal.SIGKILL  # As one whose node has gone, of which Slurm may hear much later.
        record = told
    if here.rank == 0:
        canary.failed(run, record)
        with suppress(Exception):  # It may be the config that cannot be read.
            _write_settings(run, experiment_from(run.read_config()), None)
        notify.tell(run, "failed", {"error": record})
    return 1


def _end_for_all(here: allocation.Allocation) -> None:
    """One rank is at fault: srun kills the others, which looks as if their nodes had failed, and must not requeue.

    Before the reason is on record: whoever reads that ends, and srun kills this one then.
    """
    with suppress(scheduler.SlurmError):  # Then the run gives up after some starts in vain.
        scheduler.forbid_requeue(here.job_id)


def _anothers_reason(run: RunDir) -> dict[str, Any]:
    """What the rank at fault has put on record; empty where there is none."""
    until = time.monotonic() + _REASON_SECONDS
    while not (told := run.progress().get("error")) and time.monotonic() < until:
        time.sleep(0.2)
    return dict(told or {})


def claimed_by(run: RunDir, here: allocation.Allocation) -> str | None:
    """The job that this submission belongs to: the first, where an sbatch that timed out was taken twice.

    None: the run was submitted again since, as this job seemed lost, or had failed and was requeued by hand.
    """
    told = run.submissions()
    if here.on_slurm and _submitted_again(run, here.job_name, told):
        return None
    for event in told:
        same = event.get("job_name") == here.job_name or here.job_name.endswith(f".{event.get('token')}")
        if same and event["event"] in {"submitted", "started"}:
            return str(event["job_id"])
    return here.job_id


def _submitted_again(run: RunDir, job_name: str, told: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a later submission than the one that a job is named after may have it; not one that Slurm has refused."""
    refused = {event.get("token") for event in told if event["event"] == "refused"}
    given = [event for event in told if event["event"] in {"intent", "local"}]
    names = [event.get("job_name", "") for event in given if event.get("token") not in refused]
    # A job that its owner has given another name trains on.
    ours = job_name.startswith(f"{run.id}.") or job_name in names
    return ours and bool(names) and names[-1] != job_name


def _write_settings(run: RunDir, experiment: Experiment, metrics: Mapping[str, Any] | None) -> None:
    """TensorBoard compares runs by them; `metrics`: of one that has finished. A sweep's runs differ by a few values."""
    if run.tensorboard.is_dir():
        sweep = sweep_of(run)
        values = sweep.values_of(run.id) if sweep else hparams.values_of(experiment)
        hparams.write(run.tensorboard, run.id, values, metrics is not None, metrics)


def _data_record(experiment: Experiment) -> dict[str, str]:
    source = experiment.data.sources.get(experiment.data.name)
    return {"name": experiment.data.name, "file": source.file if source else ""}


def describe(error: BaseException, job_folder: Path, own: Callable[[str], str] = str) -> dict[str, Any]:
    """An exception in one record: what it was, and the last line of the user's own code on its way.

    Keys: `type`, `message`, of a run that was given up `gave_up`, and where the way led through `job_folder` also
    `file`, `line` and `code`. `own` names the files of a text as the user knows them.
    """
    kind = Failed.__name__ if isinstance(error, Failed) else type(error).__name__
    record: dict[str, Any] = {"type": kind, "message": own(str(error)).strip()[:2000]}
    if isinstance(error, restarts.GaveUp):
        record["gave_up"] = True
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(traceback.FrameSummary(error.filename, error.lineno or 0, "", line=error.text or ""))
    for frame in reversed(frames):
        if Path(file := own(frame.filename)).is_relative_to(job_folder):
            return {**record, "file": file, "line": frame.lineno, "code": (frame.line or "").strip()}
    return record


def in_one_line(record: Mapping[str, Any]) -> str:
    """What `describe` has put together, as a sentence."""
    error = f"{record['type']}: {record['message']}"
    if "file" not in record:
        return error
    place = {key: record[key] for key in ("file", "line", "code")}
    return _("{error} at {file}:{line}: {code}", error=error, **place)


def print_traceback(error: BaseException, own: Callable[[str], str]) -> None:
    """For the log; `own` names the files of a text as the user knows them."""
    print(own("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
