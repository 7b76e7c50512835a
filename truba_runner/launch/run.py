"""Launch a composed experiment: check it, then train it here or submit it to Slurm unless that is already done."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from truba_runner.config import lr_find
from truba_runner.config.schema import Experiment
from truba_runner.environment.probe import Found
from truba_runner.errors import Failed, Refused
from truba_runner.language import _
from truba_runner.launch.here import train_here
from truba_runner.launch.prepare import check, in_environment, newest_run_dir, on_slurm_or_failed, with_data
from truba_runner.launch.wait import wait_for, waits
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import CODE, SWEEPS, RunDir
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.search import submission as search
from truba_runner.slurm import client, jobs
from truba_runner.storage import folder_lock, private
from truba_runner.storage.folder_lock import LOCK
from truba_runner.submission import changed_code, messages
from truba_runner.submission.outcome import Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.settle import settle
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
        outcome = Outcome(prepared.run.id, str(prepared.run.path), "dry_run")
    else:
        outcome = _launch_run(prepared)
    over = outcome.action == "finished"  # Its outcome is printed already.
    return wait_for([outcome])[0] if may_wait and waits(experiment) and not over else outcome


def _launch_run(prepared: Prepared) -> Outcome:
    runs_folders.remember(prepared.run.path.parent)
    if prepared.experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
        outcome = _through_slurm(prepared)
    else:
        outcome = train_here(prepared)
        if outcome.action == "finished":
            messages.changed_code([prepared])
    messages.came_of_it(outcome)
    return outcome


def _prepared(experiment: Experiment, selector: str) -> Prepared:
    experiment, made, job_file = check(experiment)
    for warning in made.warnings:
        print(_("warning: {text}", text=warning), file=sys.stderr)
    refuse_others(experiment, [newest_directory(experiment)])
    found: Found = {}
    if not experiment.dry_run:
        experiment = with_data(experiment, selector)
        found = in_environment(experiment)
    run = newest_directory(experiment)
    refuse_others(experiment, [run])
    refuse_damaged([run])
    return Prepared(experiment, run, made.request, job_file, found=found)


def newest_directory(experiment: Experiment, names: Collection[str] | None = None) -> RunDir:
    """Return the newest directory of a run or a search; `names` as in `newest_run_dir`."""
    return search.directory(experiment) if experiment.sweep.kind else newest_run_dir(experiment, names)


def refuse_others(experiment: Experiment, runs: Sequence[RunDir], *folders: Path) -> None:
    """Refuse to use the runs folder, `runs` and `folders` in it if another user owns or can write to any of them.

    Raises:
        truba_runner.errors.Refused: there are such folders.
    """
    runs_folder = Path(experiment.cluster.runs_folder)
    shared = (runs_folder / CODE, runs_folder / SWEEPS, runs_folder / LOCK)
    private.require(runs_folder, [*shared, *folders, *(run.path for run in runs)])


def refuse_damaged(runs: Iterable[RunDir]) -> None:
    """Refuse to submit a run or a search whose record of earlier submissions is damaged.

    Raises:
        truba_runner.errors.Failed: there is such a run.
    """
    for run in runs:
        if why := damage.of_submissions(run):
            told = _(
                "{run}: {why}. Whether it has a job already is not known, and two would spoil each other: see in "
                "squeue that it has none, and move {folder} away; or begin anew beside it with fresh=true.",
                run=run.id,
                why=why,
                folder=run.path,
            )
            raise Failed(told)


# -- Slurm -----------------------------------------------------------------------------------------------------


def _through_slurm(prepared: Prepared) -> Outcome:
    run = prepared.run
    with folder_lock.lock(run.path.parent) as held:
        if done := _already(prepared):
            return done
        submission = Submission(prepared)
        warn_of_cost([submission])
        job_id = submission.send(held)
        messages.submitted(submission, job_id)
    return Outcome(run.id, str(run.path), "submitted", job_id)


def _already(prepared: Prepared) -> Outcome | None:
    """Return the outcome of a run that is finished or has a live job; None: it has to be submitted."""
    run = prepared.run
    if not run.submissions():
        return None
    if run.result():
        messages.changed_code([prepared])
        return Outcome(run.id, str(run.path), "finished", last_job_id(run))
    try:
        settle(run)
        state = state_of(run, jobs.queue())
    except client.SlurmError as error:
        told = _(
            "Slurm does not answer ({message}), so whether {run} runs is not known", message=error.message, run=run.id
        )
        raise Failed(told) from error
    if state.live:
        return Outcome(run.id, str(run.path), "running", last_job_id(run))
    if run.result():
        # It finished while Slurm was answering.
        return Outcome(run.id, str(run.path), "finished", last_job_id(run))
    if problem := changed_code.problem(prepared):
        raise Refused(problem)
    return None
