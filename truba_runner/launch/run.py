"""Launch a composed experiment: check it, then train it here or submit it to Slurm unless that is already done."""

from __future__ import annotations

from truba_runner.config import lr_find
from truba_runner.config.schema import Experiment
from truba_runner.launch.here import train_here
from truba_runner.launch.prepare import (
    Checks,
    Provision,
    newest_directory,
    on_slurm_or_failed,
    refuse_damaged,
    refuse_others,
)
from truba_runner.launch.wait import wait_for, waits
from truba_runner.log import warn
from truba_runner.runs import runs_folders
from truba_runner.search import submission as search
from truba_runner.storage import folder_lock
from truba_runner.submission import messages
from truba_runner.submission.already import settled
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission, warn_of_cost


def launch(experiment: Experiment, selector: str, may_wait: bool = True) -> Outcome:
    """Submit or train a run or a search. `selector` is how the user chose the experiment.

    `may_wait`: follow `launcher.wait`; if false, the caller waits.

    Raises:
        truba_runner.errors.Refused: it breaks a rule.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    # A single run finds its learning rate itself, without a separate finder job.
    experiment = lr_find.training_of(lr_find.with_default(experiment))
    return go(_prepared(experiment, selector), may_wait)


def go(prepared: Prepared, may_wait: bool = True) -> Outcome:
    """Submit or train a checked run, or start a checked search, and print the outcome.

    `may_wait`: follow `launcher.wait`; if false, the caller waits.

    Raises:
        truba_runner.errors.Refused: its code has changed, so it must not resume, or Slurm rejects the job.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    experiment = prepared.experiment
    if experiment.sweep.kind:
        outcome = search.launch(prepared)
    elif experiment.dry_run:
        messages.dry_run([Submission(prepared)])
        outcome = Outcome(prepared.run.id, str(prepared.run.path), Action.DRY_RUN)
    else:
        outcome = _launch_run(prepared)
    over = outcome.action == Action.FINISHED  # Its outcome is printed already.
    return wait_for([outcome])[0] if may_wait and waits(experiment) and not over else outcome


def _launch_run(prepared: Prepared) -> Outcome:
    runs_folders.remember(prepared.run.path.parent)
    if prepared.experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
        outcome = _through_slurm(prepared)
    else:
        outcome = train_here(prepared)
        if outcome.action == Action.FINISHED:
            messages.changed_code([prepared])
    messages.came_of_it(outcome)
    return outcome


def _prepared(experiment: Experiment, selector: str) -> Prepared:
    checked = Checks().check(experiment)
    for warning in checked.plan.warnings:
        warn(warning)
    refuse_others(checked.experiment, [newest_directory(checked.experiment)])
    prepared = Provision(provide=not experiment.dry_run).prepare(checked, selector)
    refuse_others(prepared.experiment, [prepared.run])
    refuse_damaged([prepared.run])
    return prepared


def _through_slurm(prepared: Prepared) -> Outcome:
    run = prepared.run
    with folder_lock.lock(run.path.parent) as held:
        if done := settled([prepared])[run.id]:
            return done
        submission = Submission(prepared)
        warn_of_cost([submission])
        job_id = submission.send(held)
        messages.submitted(submission, job_id)
    return Outcome(run.id, str(run.path), Action.SUBMITTED, job_id)
