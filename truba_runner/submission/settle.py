"""Adopt the job of an interrupted submission."""

from __future__ import annotations

import time
from dataclasses import replace

from truba_runner.runs import events
from truba_runner.runs.events import Event, Kind, last_intent, sweep_events_file
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import jobs

# The job of an interrupted sbatch appears in the queue within this time.
SETTLE_SECONDS = 10.0


def settle(run: RunDir) -> str | None:
    """Return the job id of the run's latest submission; if that was interrupted, look for the job in the queue.

    None: nothing was ever submitted, or Slurm refused or never received it.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    recorded = run.submissions()
    intent = last_intent(recorded)
    if not intent.kind:
        return None
    for event in reversed(recorded):
        if event.token == intent.token and event.kind == Kind.SUBMITTED:
            return event.job_id
        if event.token == intent.token and event.kind in {Kind.REFUSED, Kind.LOST}:
            return None
        if event.kind == Kind.STARTED and event.job_name == intent.job_name:
            return event.job_id
    sbatch_times = [event.time for event in recorded if event.token == intent.token and event.kind == Kind.UNANSWERED]
    return _adopt(run, intent, max([intent.time, *sbatch_times]))


def _adopt(run: RunDir, intent: Event, last_sbatch: float) -> str | None:
    """Look for an intent's job in the queue, as long as it may still appear there after the last sbatch."""
    # Another node's clock may be ahead: a time in the future counts as now.
    age_seconds = min(SETTLE_SECONDS, max(0.0, time.time() - last_sbatch))
    until = time.monotonic() + SETTLE_SECONDS - age_seconds
    while True:
        if taken := jobs.jobs_named(intent.job_name):
            _answer(run, intent, Event(Kind.SUBMITTED, job_id=taken[0], adopted=True))
            return _task(taken[0], intent)
        if time.monotonic() > until:
            _answer(run, intent, Event(Kind.LOST))
            return None
        time.sleep(0.5)


def _answer(run: RunDir, intent: Event, event: Event) -> None:
    """Record the outcome of an intent; that of a job array once in the sweep's record, for all of its runs."""
    outcome = replace(event, token=intent.token)
    if intent.sweep:
        events.append(sweep_events_file(run.path.parent, intent.sweep), outcome)
    else:
        run.append_submission(replace(outcome, job_id=_task(outcome.job_id, intent)) if outcome.job_id else outcome)


def _task(job_id: str, intent: Event) -> str:
    """Return the id of the run's array task, or the job id if the job is no array."""
    return job_id if intent.array_index is None else f"{job_id}_{intent.array_index}"
