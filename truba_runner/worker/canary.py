"""The run that goes ahead of its sweep: the others wait in the queue, and it is its own job that lets them go.

Nothing waits on the login node meanwhile. To Slurm they depend on the canary's good end: however it ends otherwise, and
if its Python never starts, Slurm cancels them. After its first epoch its job takes the dependency from them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir, sweep_of
from truba_runner.slurm import client, commands
from truba_runner.slurm import jobs as slurm_jobs


def watcher(run: RunDir) -> Callable[[], None] | None:
    """What a run's worker calls after each epoch; None where the run goes ahead of no other.

    After each, not only the first: an array that was submitted meanwhile waits for this run too.
    """
    return (lambda: lived(run)) if _goes_ahead_of(run) else None


def lived(run: RunDir) -> None:
    """Lets the others go if the run goes ahead of any."""
    if sweep := _goes_ahead_of(run):
        release(sweep, run.id)


def failed(run: RunDir, error: Mapping[str, Any]) -> None:
    """Called by a run's worker when it has failed: says why, of those that wait for it and that Slurm now cancels."""
    if sweep := _goes_ahead_of(run):
        told = f"{error.get('type')}: {error.get('message')}"
        why = _("the canary {run} failed: {error}", run=run.id, error=told)
        # Else their own records still name the canary.
        with suppress(client.SlurmError, OSError):
            for token in _held(sweep, run.id):
                sweep.append({"event": "dropped", "token": token, "why": why})


def release(sweep: SweepDir, run_id: str) -> None:
    """Lets the arrays go that wait for this run; where that cannot be, says so."""
    with _told():
        for token, job_id in _held(sweep, run_id).items():
            with _told():
                commands.release(job_id)
                sweep.append({"event": "released", "token": token})


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong here is no fault of the training: the others start when it has ended well."""
    try:
        yield
    except (client.SlurmError, OSError) as error:
        told = _("the runs that wait for this one could not be let go ({error})", error=error)
        print(told, file=sys.stderr, flush=True)


def _goes_ahead_of(run: RunDir) -> SweepDir | None:
    intents = [event for event in run.submissions() if event["event"] == "intent"]
    return sweep_of(run) if intents and intents[-1].get("goes_ahead") else None


def _held(sweep: SweepDir, run_id: str) -> dict[str, str]:
    """Arrays that wait for this run, by token: the job's id."""
    told = sweep.events()
    over = {event["token"] for event in told if event["event"] in {"released", "dropped", "refused", "lost"}}
    jobs = {event["token"]: str(event["job_id"]) for event in told if event["event"] == "submitted"}
    waiting = {}
    for event in told:
        if event["event"] == "intent" and event.get("canary") == run_id and event["token"] not in over:
            token = event["token"]
            # One that is not on record has just been sent, or was when its command was killed.
            for job_id in [jobs[token]] if token in jobs else slurm_jobs.jobs_named(event["job_name"]):
                waiting[token] = job_id
    return waiting
