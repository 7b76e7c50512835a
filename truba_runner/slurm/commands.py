"""Slurm's commands: the only place that runs sbatch, squeue, sacct and scancel. Arguments in, parsed rows out."""

from __future__ import annotations

from collections.abc import Sequence

from truba_runner.slurm.client import SlurmError, query, run
from truba_runner.slurm.jobs import BACK_IN_QUEUE


def sbatch(script: str, *, inherit: Sequence[int] = ()) -> str:
    """Submits a script once and returns the job id.

    Raises:
        SlurmError: refused, or not answered: then the job may or may not exist.
    """
    return run(["sbatch", "--parsable"], text=script, inherit=inherit).strip().split(";")[0]


def release(job_id: str) -> None:
    """Lets a job start whatever it was submitted to wait for.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "update", f"jobid={job_id}", "dependency="])


def forbid_requeue(job_id: str) -> None:
    """Lets a job end for good, whatever it or Slurm would do at its end.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "update", f"jobid={job_id}", "requeue=0"])


def requeue(job_id: str) -> None:
    """Puts a running job back into the queue; its processes are told to end. One that is there already is no error.

    Raises:
        SlurmError: Slurm does not answer, or the job may not be requeued.
    """
    try:
        query(["scontrol", "requeue", job_id])
    except SlurmError as error:
        # Slurm has done it at a first attempt whose answer was lost, or for another who asked at the same time.
        if BACK_IN_QUEUE not in error.message:
            raise


def cancel(job_ids: Sequence[str]) -> None:
    """Cancels jobs; one that has ended already is no error.

    Raises:
        SlurmError: Slurm refused.
    """
    query(["scancel", *job_ids])
