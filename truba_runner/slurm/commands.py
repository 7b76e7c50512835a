"""Submit, release, requeue and cancel jobs with sbatch, scontrol and scancel."""

from __future__ import annotations

from collections.abc import Sequence

from truba_runner.slurm import client
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import BACK_IN_QUEUE


def sbatch(script: str, *, inherit: Sequence[int] = ()) -> str:
    """Submit a script once and return the job id.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm refused, or did not answer, in which case the job may exist.
    """
    return client.run(["sbatch", "--parsable"], text=script, inherit=inherit).strip().split(";")[0]


def release(job_id: str) -> None:
    """Remove a job's dependencies, so that it may start.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not allow it.
    """
    client.query(["scontrol", "update", f"jobid={job_id}", "dependency="])


def forbid_requeue(job_id: str) -> None:
    """Forbid requeues of a job, both by its script and by Slurm, so that it ends for good.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not allow it.
    """
    client.query(["scontrol", "update", f"jobid={job_id}", "requeue=0"])


def requeue(job_id: str) -> None:
    """Requeue a running job, which Slurm then terminates; a job that is queued again already is no error.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or the job may not be requeued.
    """
    try:
        client.query(["scontrol", "requeue", job_id])
    except SlurmError as error:
        # An attempt whose answer was lost, or another process at the same time, has requeued the job already.
        if BACK_IN_QUEUE not in error.message:
            raise


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; one that has ended already is no error.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm refused or does not answer.
    """
    client.query(["scancel", *job_ids])
