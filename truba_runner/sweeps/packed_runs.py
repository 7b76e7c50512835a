"""Train several packed runs in one job: each in a process with its own GPUs, cores, log, result and failure.

The workers save at a signal as in other jobs. None of them requeues the job, as that would end the other runs: each
reports by its exit status how it ended, and the job is requeued when all have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

from truba_runner.config.schema import experiment_from
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.record_shapes import Stage
from truba_runner.runs.restarts import REQUEUE_STATUS
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import progress_of
from truba_runner.slurm import client, commands, job_environment, jobs
from truba_runner.training.interrupt import Interruption, ignore_signals
from truba_runner.worker import node_check
from truba_runner.worker.run import fail_all

T = TypeVar("T")


def train(runs: Sequence[RunDir], token: str, places: int, share_gpus: bool) -> int:
    """Train unfinished runs; return 0 if all have a result or the job was requeued, 143 if it was terminated, else 1.

    `places` is the number of slots for runs in the job.
    """
    # The workers, in the same process group, receive the signals too and act on them. They would inherit SIG_IGN.
    for number in Interruption.signals():
        signal.signal(number, lambda number, frame: None)
    mine = [(place, run) for place, run in enumerate(runs) if _is_open(run, token)]
    if mine and not _is_healthy_here([run for _place, run in mine]):
        return 1
    workers = {run.id: _start(run, place, places, share_gpus) for place, run in mine}
    statuses = {run_id: process.wait() for run_id, process in workers.items()}
    for run_id, status in statuses.items():
        print(f"{run_id}: {_words(status)}", flush=True)
    ended = [run for _place, run in mine]
    ignore_signals()
    if any(_comes_back(run, statuses[run.id]) for run in ended):
        job_id = job_environment.current().job_id
        if _may_requeue(runs[0]) and jobs.would_end_for_good(job_id):
            commands.requeue(job_id)
            return 0
        return 128 + signal.SIGTERM
    if {128 + signal.SIGTERM, -signal.SIGTERM} & set(statuses.values()):
        return 128 + signal.SIGTERM
    return 1 if any(not run.result() for run in runs) else 0


def _is_healthy_here(runs: Sequence[RunDir]) -> bool:
    """Check this node for all runs; if it is bad and cannot be left, record them as failed and return False."""
    here = job_environment.current()
    try:
        node_check.check(runs, experiment_from(runs[0].read_config()), here)
    except (Failed, client.SlurmError) as error:
        fail_all(runs, here, error)
        return False
    return True


def _is_open(run: RunDir, token: str) -> bool:
    """Return whether this job still has to train the run: it has not ended before, and no other job has it now."""
    return run.is_last_given_to(token) and not run.result() and progress_of(run).state != Stage.FAILED


def _may_requeue(run: RunDir) -> bool:
    """Return whether the site allows requeues; true for configs of earlier versions, which lack the key."""
    return bool(run.read_config().get("cluster", {}).get("requeue", True))


def _comes_back(run: RunDir, status: int) -> bool:
    """Return whether the run needs a requeue to resume: it requested one, or was killed before it could."""
    return status == REQUEUE_STATUS or (status in {-signal.SIGKILL, -signal.SIGUSR2} and not run.result())


def _words(status: int) -> str:
    known = {0: _("done"), REQUEUE_STATUS: _("saved, resumes later"), 128 + signal.SIGTERM: _("saved")}
    if status in known:
        return known[status]
    if status < 0:
        return _("killed by signal {number}", number=-status)
    return _("failed with exit status {status}", status=status)


def _start(run: RunDir, place: int, places: int, share_gpus: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TRUBA_CREW": "1", **_gpus(place, places, share_gpus)}
    cores = os.sched_getaffinity(0)
    with run.log_of(job_environment.current().job_id).open("ab") as output:
        os.sched_setaffinity(0, _share(sorted(cores), place, places) or cores)
        try:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "truba_runner.worker", str(run.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        finally:
            os.sched_setaffinity(0, cores)


def _gpus(place: int, places: int, share_gpus: bool) -> dict[str, str]:
    """Return the variables that assign a run its part of the job's GPUs, or let it share all of them."""
    if share_gpus:
        # Otherwise the first TensorFlow process takes all GPU memory.
        return {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    part = _share(visible, place, places)
    return {"CUDA_VISIBLE_DEVICES": ",".join(part)} if part else {}


def _share(whole: Sequence[T], place: int, places: int) -> list[T]:
    size = len(whole) // places
    return list(whole[place * size : (place + 1) * size])
