"""What becomes of a composed experiment: checked, decided, then trained here or handed to Slurm."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from truba_runner import (
    changed_code,
    damage,
    data,
    job_module,
    lr_find,
    places,
    private,
    probe,
    probe_job,
    rundir,
    scheduler,
    snapshot,
    tell,
    weights,
)
from truba_runner.config import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.identity import run_id
from truba_runner.language import _
from truba_runner.plan import Plan, plan
from truba_runner.probe import Found
from truba_runner.queue.automatic import Automatic
from truba_runner.rundir import CODE, SWEEPS, RunDir
from truba_runner.search import overview
from truba_runner.search import submission as search
from truba_runner.search.directory import search_of
from truba_runner.search.space import jobs
from truba_runner.state import last_job_id, state_of
from truba_runner.submit import Prepared, Submission, settle, warn_of_cost
from truba_runner.tell import Outcome

_WAIT_SECONDS = 2.0


def launch(experiment: Experiment, selector: str, may_wait: bool = True) -> Outcome:
    """Submits or trains a run, or a search. `selector` is how the user chose the experiment.

    `may_wait`: where `launcher.wait` says so; else it is left to the caller.

    Raises:
        Refused: it breaks a rule.
        Failed: Slurm does not answer.
    """
    # Of a single run the finder is no job of its own.
    experiment = lr_find.training_of(lr_find.with_default(experiment))
    return go(_prepared(experiment, selector), may_wait)


def go(prepared: Prepared, may_wait: bool = True) -> Outcome:
    """Submits or trains a run, or starts a search, that breaks no rule; says what came of it.

    `may_wait`: where `launcher.wait` says so; else it is left to the caller.

    Raises:
        Refused: it may not go on with the code that it finds.
        Failed: Slurm does not answer.
    """
    experiment = prepared.experiment
    if experiment.sweep.kind:
        outcome = search.launch(prepared)
    elif experiment.dry_run:
        tell.dry_run([Submission(prepared)])
        outcome = Outcome(prepared.run.id, str(prepared.run.path), "dry_run")
    else:
        outcome = _launch_run(prepared)
    over = outcome.action == "finished"  # As was said already.
    return wait_for([outcome])[0] if may_wait and waits(experiment) and not over else outcome


def waits(experiment: Experiment) -> bool:
    """Whether the command is to stay until what it submits has ended."""
    return experiment.launcher.wait and experiment.cluster.scheduler == "slurm" and not experiment.dry_run


def _launch_run(prepared: Prepared) -> Outcome:
    places.remember(prepared.run.path.parent)
    if prepared.experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
        outcome = _through_slurm(prepared)
    else:
        outcome = train_here(prepared)
        if outcome.action == "finished":
            tell.changed_code([prepared])
    tell.came_of_it(outcome)
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
    """Of a run, or of a search; `names` as in `newest_run_dir`."""
    return search.directory(experiment) if experiment.sweep.kind else newest_run_dir(experiment, names)


def refuse_others(experiment: Experiment, runs: Sequence[RunDir], *folders: Path) -> None:
    """Holds back what would use a runs folder, or in it a run's or one of `folders`, that is not this user's alone.

    Raises:
        Refused: there are such folders.
    """
    runs_folder = Path(experiment.cluster.runs_folder)
    shared = (runs_folder / CODE, runs_folder / SWEEPS)
    private.require(runs_folder, [*shared, *folders, *(run.path for run in runs)])


def refuse_damaged(runs: Iterable[RunDir]) -> None:
    """Holds back what would submit a run, or a search, whose earlier submissions cannot be told.

    Raises:
        Failed: there is such a run.
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


def check(experiment: Experiment) -> tuple[Experiment, Plan, Path]:
    """The experiment without `auto`, its plan, and the file of its job.

    Raises:
        Refused: with every broken rule.
        Failed: Slurm does not answer.
    """
    problems: list[Problem] = []
    made, job_file = None, None
    try:
        found = job_module.find(experiment.job.module, Path.cwd())
        snapshot.refuse_too_much(experiment, found)
        job_file = found
    except Refused as refused:
        problems += refused.problems
    try:
        experiment = Automatic().settled(experiment, job_file or Path(experiment.job.module))
        made = plan(experiment, login_node=socket.gethostname())
    except Refused as refused:
        problems = [*refused.problems, *problems]
    if made is None or job_file is None:
        raise Refused(*problems)
    return experiment, made, job_file


def in_environment(experiment: Experiment) -> Found:
    """What the job's Python holds, where that is known.

    Raises:
        Refused: the experiment can't be trained with it.
        Failed: there is no Slurm here.
    """
    if experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
    return probe.found(experiment, lambda script: probe_job.run(experiment, script))


def on_slurm_or_failed() -> None:
    """Makes sure that jobs can be submitted from here.

    Raises:
        Failed: they cannot.
    """
    if not scheduler.available():
        raise Failed(_("there is no sbatch on the PATH; is this a login node? cluster=local trains here"))


def with_data(experiment: Experiment, selector: str) -> Experiment:
    """Sees to the data; where other data stands in for it, says so and trains on that under its own name."""
    name = data.provide(experiment, selector)
    # Of a long table the one line that the run uses; a search has trials, which may use several.
    used = {arch: url for job in jobs(experiment) for arch, url in weights.chosen(job).items()}
    experiment = replace(experiment, job=replace(experiment.job, weights=used))
    if name == experiment.data.name:
        return experiment
    asked, folder = experiment.data.name, experiment.data.folder
    lacks = _("{data} is neither in {folder} nor can it be downloaded from here.", data=asked, folder=folder)
    instead = _("Training on {name} instead: results say nothing about {data}.", name=name, data=asked)
    print(f"\n*** {lacks} ***\n*** {instead} ***\n")
    return replace(experiment, data=replace(experiment.data, name=name))


def newest_run_dir(experiment: Experiment, names: Collection[str] | None = None) -> RunDir:
    """The newest run of this config, or, for a fresh start, the one after it.

    `names` is what the runs folder holds, where somebody has looked already.
    """
    folder, name = Path(experiment.cluster.runs_folder), run_id(experiment)

    def exists(one: str) -> bool:
        try:
            return (names is None or one in names) and RunDir(folder / one).exists()
        except PermissionError:  # It is another's, and refused as such.
            return True

    count = 1
    while exists(f"{name}.{count + 1}"):
        count += 1
    if experiment.fresh and exists(name):
        count += 1
    return RunDir(folder / (name if count == 1 else f"{name}.{count}"))


# -- Slurm -----------------------------------------------------------------------------------------------------


def _through_slurm(prepared: Prepared) -> Outcome:
    run = prepared.run
    with rundir.lock(run.path.parent) as held:
        if done := _already(prepared):
            return done
        submission = Submission(prepared)
        warn_of_cost([submission])
        job_id = submission.send(held)
        tell.submitted(submission, job_id)
    return Outcome(run.id, str(run.path), "submitted", job_id)


def wait_for(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Holds on until Slurm has done with every run; with a search, once it has its result or no worker.

    Raises:
        Failed: Slurm cannot be asked.
    """
    ended = []
    for outcome in outcomes:
        if outcome.action == "finished":
            ended.append(outcome)
            tell.came_of_it(outcome)
            continue
        run = RunDir(Path(outcome.run_dir))
        while not run.result() and _in_slurms_hands(run):
            time.sleep(_WAIT_SECONDS)
        ended.append(replace(outcome, action="trained" if run.result() else "failed"))
        tell.came_of_it(ended[-1])
    return ended


def _in_slurms_hands(run: RunDir) -> bool:
    """Whether the run's job waits or runs; one that squeue has just lost sight of is looked for in accounting."""
    try:
        jobs = scheduler.queue()
    except scheduler.SlurmError as error:
        if error.transient:  # That it does not answer for a while ends no job.
            return True
        told = _(
            "Slurm does not answer ({message}), so whether {run} runs is not known", message=error.message, run=run.id
        )
        raise Failed(told) from error
    found = search_of(run)
    if not jobs:
        with suppress(scheduler.SlurmError):
            asked = overview.job_runs(found) if found else [run]
            jobs = scheduler.accounting([last_job_id(one) for one in asked])
    return (overview.standing(found, jobs) if found else state_of(run, jobs)).live


def _already(prepared: Prepared) -> Outcome | None:
    """The outcome of a run that needs no submission: finished, or in Slurm's hands."""
    run = prepared.run
    if not run.submissions():
        return None
    if run.result():
        tell.changed_code([prepared])
        return Outcome(run.id, str(run.path), "finished", last_job_id(run))
    try:
        settle(run)
        state = state_of(run, scheduler.queue())
    except scheduler.SlurmError as error:
        told = _(
            "Slurm does not answer ({message}), so whether {run} runs is not known", message=error.message, run=run.id
        )
        raise Failed(told) from error
    if state.live:
        return Outcome(run.id, str(run.path), "running", last_job_id(run))
    if run.result():
        # Since it was looked at above: Slurm takes its time to answer.
        return Outcome(run.id, str(run.path), "finished", last_job_id(run))
    if problem := changed_code.problem(prepared):
        raise Refused(problem)
    return None


# -- here ------------------------------------------------------------------------------------------------------


def train_here(prepared: Prepared) -> Outcome:
    """Trains a run on this machine, and waits for it."""
    from truba_runner.local import see_through, start_here

    run = prepared.run
    action, stopped = "finished", False
    if not run.result():
        with rundir.lock(run.path.parent):
            live = state_of(run, {}).live
            if not live and (problem := changed_code.problem(prepared)):
                raise Refused(problem)
            worker = None if live else start_here(prepared)
        action = "running"
        if worker is not None:
            stopped = see_through(prepared, worker)
            action = "trained" if run.result() else "failed"
    return Outcome(run.id, str(run.path), action, last_job_id(run), stopped)
