"""Release or cancel the runs of a sweep that wait for its canary, the run that trains first.

The others wait in Slurm's queue with a dependency on the canary's success: if it ends otherwise, or its Python never
starts, Slurm cancels them. After its first epoch its job removes the dependency. Nothing waits on the login node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.runs.events import Event, Kind, last_intent
from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir, sweep_of
from truba_runner.slurm import client, commands
from truba_runner.slurm import jobs as slurm_jobs


def watcher(run: RunDir) -> Callable[[], None] | None:
    """Return the function to call after each epoch; None if the run is no canary.

    After each epoch, not only the first, as an array submitted later waits for this run too.
    """
    return (lambda: first_epoch_done(run)) if _goes_ahead_of(run) else None


def first_epoch_done(run: RunDir) -> None:
    """Release the waiting runs if this run is a canary."""
    if sweep := _goes_ahead_of(run):
        release(sweep, run.id)


def failed(run: RunDir, error: ErrorRecord) -> None:
    """If a failed run is a canary, record the reason for the runs that wait for it, which Slurm now cancels."""
    if sweep := _goes_ahead_of(run):
        message = f"{error.type}: {error.message}"
        why = _("the canary {run} failed: {error}", run=run.id, error=message)
        # If this fails, the records of the waiting runs still name the canary.
        with suppress(client.SlurmError, OSError):
            for token in _held(sweep, run.id):
                sweep.append(Event(Kind.DROPPED, token=token, why=why))


def release(sweep: SweepDir, run_id: str) -> None:
    """Release the arrays that wait for this run; print failures."""
    with _failures_printed():
        for token, job_id in _held(sweep, run_id).items():
            with _failures_printed():
                commands.release(job_id)
                sweep.append(Event(Kind.RELEASED, token=token))


@contextmanager
def _failures_printed() -> Iterator[None]:
    """Print errors of Slurm or the disk; the training continues, and the others start when it has succeeded."""
    try:
        yield
    except (client.SlurmError, OSError) as error:
        print_error("the runs held for this one could not be released ({error})", error=error)


def _goes_ahead_of(run: RunDir) -> SweepDir | None:
    return sweep_of(run) if last_intent(run.submissions()).goes_ahead else None


def _held(sweep: SweepDir, run_id: str) -> dict[str, str]:
    """Return the job ids of the arrays that wait for this run, by token."""
    events = sweep.events()
    ends = {Kind.RELEASED, Kind.DROPPED, Kind.REFUSED, Kind.LOST}
    over = {event.token for event in events if event.kind in ends}
    jobs = {event.token: event.job_id for event in events if event.kind == Kind.SUBMITTED}
    waiting = {}
    for event in events:
        if event.kind == Kind.INTENT and event.canary == run_id and event.token not in over:
            token = event.token
            # Without a recorded job id, sbatch is still running or its command was killed: search by name.
            for job_id in [jobs[token]] if token in jobs else slurm_jobs.jobs_named(event.job_name):
                waiting[token] = job_id
    return waiting
