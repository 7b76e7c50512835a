"""Find out whether a run still belongs to this job."""

from __future__ import annotations

from collections.abc import Sequence

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import job_environment


def claimed_by(run: RunDir, here: job_environment.Allocation) -> str | None:
    """Return the id of the job that owns this submission: the first one, if a timed-out sbatch created two.

    None: the run was submitted again since, as this job seemed lost, or had failed and was then requeued by hand.
    """
    events = run.submissions()
    if here.on_slurm and _submitted_again(run, here.job_name, events):
        return None
    for event in events:
        started = event.kind == Kind.STARTED and event.job_name == here.job_name
        if started or (event.kind == Kind.SUBMITTED and here.job_name.endswith(f".{event.token}")):
            return event.job_id
    return here.job_id


def _submitted_again(run: RunDir, job_name: str, events: Sequence[Event]) -> bool:
    """Whether a later submission than that of the job name exists; submissions that Slurm refused do not count."""
    refused = {event.token for event in events if event.kind == Kind.REFUSED}
    given = [event for event in events if event.kind in {Kind.INTENT, Kind.LOCAL}]
    names = [event.job_name for event in given if event.token not in refused]
    # A job with a foreign name was renamed by its owner, and keeps the run.
    ours = job_name.startswith(f"{run.id}.") or job_name in names
    return ours and bool(names) and names[-1] != job_name
