"""Several small runs in one job: a process each, with GPUs, cores, a log, a result and a failure of its own.

The runs' workers save at a signal as ever. What none of them can decide is when the job goes back into the queue: it
would take the others along. So each says how it ended, and the job is requeued when all have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

from truba_runner.language import _
from truba_runner.runs.restarts import REQUEUE_STATUS
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import progress_of
from truba_runner.slurm import commands, job_environment, jobs
from truba_runner.training.interrupt import Interruption, ignore_signals

T = TypeVar("T")


def train(runs: Sequence[RunDir], token: str, places: int, share_gpus: bool) -> int:
    """Trains those that are still to be trained; 0 where all have a result or go on later, else 1, or 143 if ended.

    `places` is how many runs the job has room for.
    """
    # They are for the workers, which are of this process's group and get them too. Not SIG_IGN: it would be inherited.
    for number in Interruption.signals():
        signal.signal(number, lambda number, frame: None)
    mine = [(place, run) for place, run in enumerate(runs) if _is_open(run, token)]
    workers = {run.id: _start(run, place, places, share_gpus) for place, run in mine}
    statuses = {run_id: process.wait() for run_id, process in workers.items()}
    for run_id, status in statuses.items():
        print(f"{run_id}: {_words(status)}", flush=True)
    ended = [run for _place, run in mine]
    ignore_signals()
    if any(_comes_back(run, statuses[run.id]) for run in ended):
        if jobs.would_end_for_good(job_id := job_environment.current().job_id):
            commands.requeue(job_id)
            return 0
        return 128 + signal.SIGTERM
    if {128 + signal.SIGTERM, -signal.SIGTERM} & set(statuses.values()):
        return 128 + signal.SIGTERM
    return 1 if any(not run.result() for run in runs) else 0


def _is_open(run: RunDir, token: str) -> bool:
    """Whether the run is still this job's to train: it may have ended at an earlier start, or be another job's now."""
    return run.is_last_given_to(token) and not run.result() and progress_of(run).get("state") != "failed"


def _comes_back(run: RunDir, status: int) -> bool:
    """Whether the run goes on once the job is back: it asked for that, or was killed before it could."""
    return status == REQUEUE_STATUS or (status in {-signal.SIGKILL, -signal.SIGUSR2} and not run.result())


def _words(status: int) -> str:
    known = {0: _("done"), REQUEUE_STATUS: _("saved, to go on later"), 128 + signal.SIGTERM: _("saved")}
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
    """The variables that give a run its part of the job's GPUs, or let it be one of several on all of them."""
    if share_gpus:
        # Else the first takes all of the memory.
        return {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    part = _share(visible, place, places)
    return {"CUDA_VISIBLE_DEVICES": ",".join(part)} if part else {}


def _share(whole: Sequence[T], place: int, places: int) -> list[T]:
    size = len(whole) // places
    return list(whole[place * size : (place + 1) * size])
