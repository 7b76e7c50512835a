"""Submit, release, requeue and cancel jobs with sbatch, scontrol and scancel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from truba_runner.language import _
from truba_runner.slurm import client
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import BACK_IN_QUEUE

if TYPE_CHECKING:
    from truba_runner.config.schema import Refusal

# The line in which sbatch reports the controller's error code, also with --test-only.
_SLURMS_LINE = re.compile("(Batch job submission failed|allocation failure): ")


def sbatch(script: str, *, inherit: Sequence[int] = ()) -> str:
    """Submit a script once and return the job id.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm refused, or did not answer, in which case the job may exist.
    """
    return client.run(["sbatch", "--parsable"], text=script, inherit=inherit).strip().split(";")[0]


def words_of_refusal(message: str) -> tuple[str, bool]:
    """Return why sbatch refused a job, in one line, and whether the site's submit filter said so.

    In that case Slurm's own line, after the filter's, is left out: it has an error code that the filter chose.
    """
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in message.splitlines()]
    own = [line for line in lines if line and not _SLURMS_LINE.match(line)]
    return " ".join(own or lines), bool(own) and len(own) < len(lines)


def explained(words: str, refusals: Sequence[Refusal]) -> tuple[str, str] | None:
    """Return what a refusal by the site's filter means and what to do, translated; None if no row matches."""
    for row in refusals:
        if found := re.search(row.matches, words):
            return _(row.means, **found.groupdict("?")), _(row.do, **found.groupdict("?"))
    return None


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


def exclude(job_id: str, nodes: str) -> None:
    """Replace the list of nodes on which a pending job may not start; of an array, for all tasks that are pending.

    `nodes` is in Slurm's form.

    Raises:
        truba_runner.slurm.client.SlurmError: the job runs, a node is unknown, or Slurm does not answer. For an array
            with running tasks too, although the pending ones have the list.
    """
    client.query(["scontrol", "update", f"jobid={job_id}", f"excnodelist={nodes}"])


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; one that has ended already is no error.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm refused or does not answer.
    """
    client.query(["scancel", *job_ids])
