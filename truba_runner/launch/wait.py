"""Wait until jobs have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.search import overview
from truba_runner.search.directory import search_of
from truba_runner.slurm import client
from truba_runner.slurm import jobs as slurm_jobs
from truba_runner.submission import messages
from truba_runner.submission.outcome import Action, Outcome

_WAIT_SECONDS = 2.0


def waits(experiment: Experiment) -> bool:
    """Return whether the command waits until the jobs that it submits have ended."""
    return experiment.launcher.wait and experiment.cluster.scheduler == "slurm" and not experiment.dry_run


def wait_for(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Wait until every run or search has a result or no live job; print and return the outcomes.

    Raises:
        truba_runner.errors.Failed: Slurm cannot be queried.
    """
    ended = []
    for outcome in outcomes:
        if outcome.action == Action.FINISHED:
            ended.append(outcome)
            messages.came_of_it(outcome)
            continue
        run = RunDir(Path(outcome.run_dir))
        while not run.result() and _in_slurms_hands(run):
            time.sleep(_WAIT_SECONDS)
        ended.append(_ended(outcome, run))
        messages.came_of_it(ended[-1])
    return ended


def _ended(outcome: Outcome, run: RunDir) -> Outcome:
    if run.result():
        return replace(outcome, action=Action.TRAINED)
    found = search_of(run)
    return replace(outcome, action=Action.FAILED, why=overview.standing(found, {}).why if found else "")


def _in_slurms_hands(run: RunDir) -> bool:
    """Return whether the run or search has a live job; if squeue no longer lists any job, ask accounting."""
    try:
        jobs = slurm_jobs.queue()
    except client.SlurmError as error:
        if error.transient:  # A job does not end because the controller is unreachable for a while.
            return True
        message = _(
            "Slurm does not answer ({message}), so it is not known whether {run} is running",
            message=error.message,
            run=run.id,
        )
        raise Failed(message) from error
    found = search_of(run)
    if not jobs:
        with suppress(client.SlurmError):
            asked = overview.job_runs(found) if found else [run]
            jobs = slurm_jobs.accounting([last_job_id(one) for one in asked])
    return (overview.standing(found, jobs) if found else state_of(run.record(), jobs)).live
