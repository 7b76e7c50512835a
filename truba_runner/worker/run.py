"""Train one run in a job: read the run directory, train, and write the result.

It needs neither Hydra nor submitit, only the path of the run directory, so the job's Python can differ from the login
node's.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner import verify
from truba_runner.code import unpacked
from truba_runner.code.unpacked import SubmittedCode
from truba_runner.config import lr_find, partitions
from truba_runner.config.schema import Experiment, experiment_from
from truba_runner.data import hub_names
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import info, print_error, warn
from truba_runner.runs import restarts
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.progress import Progress
from truba_runner.runs.record_shapes import ErrorRecord, Stage, as_record
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import sweep_of
from truba_runner.slurm import client, commands, job_environment, request
from truba_runner.storage import private
from truba_runner.training import backend, full_disk
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.summaries import hparams
from truba_runner.worker import canary, convolution, drill, node_check, notify
from truba_runner.worker.claims import claimed_by
from truba_runner.worker.failure import describe, print_traceback

# Exceptions that TensorFlow, and our ranks for fastai, raise if another rank has ended.
_OTHERS_FAULT = {"UnavailableError", "AbortedError", "CancelledError", "RankLost"}
# How long the other ranks wait for the reason of a failed rank, which it records after it has forbidden the requeue.
_REASON_SECONDS = 15.0


def main(arguments: list[str]) -> int:
    """Train the run at `arguments[0]`; return 0 if it has a result or is requeued, 1 if it failed, 143 if ended."""
    run = RunDir(Path(arguments[0]).resolve())
    here = job_environment.current()
    if private.refused([run.path]):
        return 1
    with SubmittedCode() as code:
        return _main(run, here, Interruption(), code)


def _main(run: RunDir, here: job_environment.Allocation, interruption: Interruption, code: SubmittedCode) -> int:
    # As for stderr: the log may name a file whose name is not UTF-8.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    progress = Progress(run, here.job_id, writes=here.rank == 0)
    try:
        interruption.listen()
        os.chdir(run.path)
        if run.result():
            return 0  # The job was requeued after the run had finished.
        experiment = experiment_from(run.read_config())
        position = CheckpointStore(run.checkpoints).position()
        if here.rank == 0:
            progress.stand_at(position)
        if here.rank == 0 and not begin(run, here, position, experiment):
            return 0
        if here.rank and claimed_by(run, here) != here.job_id:
            return 0  # Rank 0 has returned as well; do not wait for it.
        progress.update(epochs=experiment.train.epochs)
        progress.epoch_watcher = canary.watcher(run)
        if here.rank == 0:
            # Only rank 0 has just recorded which start this is; the others end with it.
            progress.watcher = drill.saboteur(experiment.drill, start=restarts.account(run.submissions())["restarts"])
        with interruption.recognised():
            result = _train(experiment, run, progress, here, interruption, code)
        interruption.decided()
        if here.rank == 0:
            record = {"data": _data_record(experiment), "job_id": here.job_id, **restarts.account(run.submissions())}
            record.update(verify.record(run))
            verify.forget(run, here)
            warned = {"warning": progress.record.warning} if progress.record.warning else {}
            run.write_result({**result, **record, **warned})
        progress.update(state=Stage.FINISHED, metrics=result.get("metrics", {}))
        if here.rank == 0:
            canary.first_epoch_done(run)
            _write_settings(run, experiment, result.get("metrics", {}))
            if sweep_of(run):  # A sweep of a thousand runs would leave too many files.
                CheckpointStore(run.checkpoints).keep_the_best_alone()
            notify.tell(run, "finished", {"metrics": result.get("metrics", {})})
    except Interrupted:
        return after_interruption(run, here, progress, interruption)
    except BaseException as error:
        interruption.decided()
        return failed(run, here, progress, error, code)
    return 0


def begin(run: RunDir, here: job_environment.Allocation, position: Position, experiment: Experiment) -> bool:
    """Check the node and record a start from a position; return False if this submission belongs to another job.

    Raises:
        truba_runner.errors.Failed: the node is bad, and cannot be left.
        truba_runner.slurm.client.SlurmError: the node is bad, and Slurm does not requeue the job.
        truba_runner.runs.restarts.GaveUp: several starts of this job have made no progress.
    """
    if (other := claimed_by(run, here)) is not None:
        if other == here.job_id:
            node_check.check([run], experiment, here)
        about = Event(
            job_name=here.job_name,
            host=platform.node(),
            python=platform.python_version(),
            job_sha256=unpacked.sha256(run.submitted()),
        )
        restarts.begin(run, here.job_id, position, about)
        if (other := claimed_by(run, here)) == here.job_id:
            return True
        run.append_submission(Event(Kind.DUPLICATE, job_id=here.job_id))
    if other is None:
        info("{run} now belongs to another submission; there is nothing to do", run=run.id)
    else:
        jobs = {"other": other, "job_id": here.job_id}
        info("this submission already belongs to job {other}; there is nothing to do for job {job_id}", **jobs)
    return False


def _train(
    experiment: Experiment,
    run: RunDir,
    progress: Progress,
    here: job_environment.Allocation,
    interruption: Interruption,
    code: SubmittedCode,
) -> dict[str, Any]:
    where = {"job_id": here.job_id, "node": platform.node(), "data": experiment.data.name}
    # why/case.py recognises a start by this line, in each language.
    info("run {run}, job {job_id}, on {node}, data {data}", run=run.id, **where)
    # Before anything is imported that reads them.
    os.environ.update(hub_names.variables(experiment.data))
    finds = experiment.sweep.kind == lr_find.KIND
    if not finds and verify.is_due(run, experiment):
        # Here no framework is imported yet, and the GPUs are free.
        verify.verify(run, experiment, here)
    # The backend first: it sets up its framework, which the job then imports.
    work = backend.load(experiment.job.backend, "find" if finds else "train")
    convolution.check(experiment, run, here)
    record = run.submitted()
    if unpacked.sha256(record) != record.job_sha256:
        warn("{file} has changed since it was submitted", file=record.job_file)
    job = code.load(record, partitions.scratch_of(experiment))
    return work(backend.Context(experiment, job, run, progress, interruption, here.rank, here.tasks))


def after_interruption(
    run: RunDir, here: job_environment.Allocation, progress: Progress, interruption: Interruption
) -> int:
    """Requeue the run if possible, after a signal and its checkpoint; return the exit status."""
    interruption.decided()
    progress.update(state=Stage.INTERRUPTED)
    if not here.on_slurm:
        return 128 + signal.SIGTERM
    if here.rank:
        return 0  # Rank 0 acts for the job; a nonzero status here would make srun kill it.
    experiment = experiment_from(run.read_config())
    most = experiment.resources.max_requeues
    with suppress(OSError):  # If the disk is full, this start counts as one without progress.
        restarts.broken_off(run, here.job_id, request.derive(experiment))
    if not experiment.cluster.requeue:
        print_error("interrupted; this site does not requeue jobs: the same command resumes the run")
        return 128 + signal.SIGTERM
    try:
        requeued = restarts.requeue(run, here.job_id, most, here.packed)
    except (Failed, client.SlurmError) as error:
        return failed(run, here, progress, error)
    print_error(_("back in the queue") if requeued else _("interrupted"))
    if requeued and here.packed:
        return restarts.REQUEUE_STATUS
    return 0 if requeued else 128 + signal.SIGTERM


def failed(
    run: RunDir,
    here: job_environment.Allocation,
    progress: Progress,
    error: BaseException,
    code: SubmittedCode | None = None,
) -> int:
    """Record, print and report the error that ended the run; return the exit status. `code`: the unpacked code."""
    error = full_disk.explained(error, run)
    own = code.own if code else str
    record = describe(error, Path(run.submitted().job_file or "/").parent, own)
    others = here.tasks > 1 and type(error).__name__ in _OTHERS_FAULT
    if not others:
        if here.on_slurm and here.tasks > 1:
            _end_for_all(here)
        progress.update(state=Stage.FAILED, error=record)
        if here.rank:
            progress.tell_for_rank_0()
    with suppress(OSError):  # The log may be on the full disk too.
        if isinstance(error, Failed):
            print_error(own(str(error)))
        else:
            print_traceback(error, own)
    if others:
        if not (error_of_another := _anothers_reason(run)):
            print_error("another rank has ended, and none has failed: the job goes back into the queue")
            return 128 + signal.SIGKILL  # As if the node were lost; if it is, Slurm may notice much later.
        record = error_of_another
    if here.rank == 0:
        canary.failed(run, record)
        with suppress(Exception):  # The error may be an unreadable config.
            _write_settings(run, experiment_from(run.read_config()), None)
        notify.tell(run, "failed", {"error": as_record(record)})
    return 1


def fail_all(runs: Sequence[RunDir], here: job_environment.Allocation, error: Exception) -> None:
    """Record all runs of a job as failed by the same error."""
    for run in runs:
        failed(run, here, Progress(run, here.job_id), error)


def _end_for_all(here: job_environment.Allocation) -> None:
    """Forbid a requeue, as this rank failed: srun kills the others, which would look like a failure of their nodes.

    Call it before the reason is recorded: ranks that read the reason end, and then srun kills this rank.
    """
    with suppress(client.SlurmError):  # Then the run is given up after some starts without progress.
        commands.forbid_requeue(here.job_id)


def _anothers_reason(run: RunDir) -> ErrorRecord | None:
    """Wait for the error that the failed rank records; None if there is none in time."""
    until = time.monotonic() + _REASON_SECONDS
    while (error := run.progress().error) is None and time.monotonic() < until:
        time.sleep(0.2)
    return error


def _write_settings(run: RunDir, experiment: Experiment, metrics: Mapping[str, Any] | None) -> None:
    """Write the run's settings for TensorBoard (of a sweep, the swept values); `metrics`: None if the run failed."""
    if run.tensorboard.is_dir():
        sweep = sweep_of(run)
        values = sweep.values_of(run.id) if sweep else hparams.values_of(experiment)
        hparams.write(run.tensorboard, run.id, values, metrics is not None, metrics)


def _data_record(experiment: Experiment) -> dict[str, str]:
    source = experiment.data.sources.get(experiment.data.name)
    return {"name": experiment.data.name, "file": source.file if source else ""}
