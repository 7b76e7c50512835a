"""What becomes of composed experiments: checked together, decided one by one, then trained here or handed to Slurm."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from truba_runner import data, job_module, places, rundir, scheduler, tell
from truba_runner.config import Experiment, run_id
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.plan import Plan, plan
from truba_runner.rundir import RunDir
from truba_runner.search import submission as search
from truba_runner.state import last_job_id, state_of
from truba_runner.submit import Prepared, Submission, settle
from truba_runner.tell import Outcome

_WAIT_SECONDS = 2.0


def launch(experiments: Sequence[Experiment], selector: str) -> list[Outcome]:
    """Submits or trains these runs, one outcome each, in order. `selector` is how the user chose the experiment.

    Raises:
        Refused: an experiment breaks a rule; then none of them is submitted.
        Failed: Slurm does not answer.
    """
    plans, rooted = _checked([absolute(experiment) for experiment in experiments])
    dry_run = any(experiment.dry_run for experiment in rooted)
    provided = rooted if dry_run else [_with_data(experiment, selector) for experiment in rooted]
    prepared = [
        Prepared(experiment, _directory(experiment), made.request, job_module.find(experiment.job.module, Path.cwd()))
        for experiment, made in zip(provided, plans, strict=True)
    ]
    for warning in dict.fromkeys(warning for made in plans for warning in made.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if any(one.experiment.sweep.kind for one in prepared):
        return [search.launch(one) if one.experiment.sweep.kind else _launch([one])[0] for one in prepared]
    return _launch(prepared)


def _launch(prepared: Sequence[Prepared]) -> list[Outcome]:
    if prepared[0].experiment.dry_run:
        tell.dry_run(_alike(prepared))
        return [Outcome(one.run.id, str(one.run.path), "dry_run") for one in prepared]
    places.remember(prepared[0].run.path.parent)
    if prepared[0].experiment.cluster.scheduler == "slurm":
        if not scheduler.available():
            raise Failed("there is no sbatch on the PATH; is this a login node? cluster=local trains here")
        outcomes = _through_slurm(prepared)
        return _waited_for(outcomes) if prepared[0].experiment.launcher.wait else outcomes
    return [_here(one) for one in prepared]


def _checked(experiments: Sequence[Experiment]) -> tuple[list[Plan], Sequence[Experiment]]:
    """Plans for all, or every broken rule of all at once."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    for experiment in experiments:
        try:
            plans.append(plan(experiment, login_node=socket.gethostname()))
        except Refused as refused:
            problems += refused.problems
        try:
            job_module.find(experiment.job.module, Path.cwd())
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(*dict.fromkeys(problems))
    return plans, experiments


def absolute(experiment: Experiment) -> Experiment:
    """Folders as a job sees them, which starts in a directory of its own."""
    here = Path.cwd()
    cluster = replace(experiment.cluster, runs_folder=str(here / Path(experiment.cluster.runs_folder).expanduser()))
    folder = str(here / Path(experiment.data.folder).expanduser())
    return replace(experiment, cluster=cluster, data=replace(experiment.data, folder=folder))


def _with_data(experiment: Experiment, selector: str) -> Experiment:
    """Sees to the data; where other data stands in for it, says so and trains on that under its own name."""
    name = data.provide(experiment, selector)
    if name == experiment.data.name:
        return experiment
    print(
        f"\n*** {experiment.data.name} is neither in {experiment.data.folder} nor can it be downloaded from here. ***\n"
        f"*** Training on {name} instead: results say nothing about {experiment.data.name}. ***\n"
    )
    return replace(experiment, data=replace(experiment.data, name=name))


def _directory(experiment: Experiment) -> RunDir:
    return search.directory(experiment) if experiment.sweep.kind else _run_dir(experiment)


def _run_dir(experiment: Experiment) -> RunDir:
    """The newest run of this config, or, for a fresh start, the one after it."""
    folder, name = Path(experiment.cluster.runs_folder), run_id(experiment)
    count = 1
    while RunDir(folder / f"{name}.{count + 1}").exists():
        count += 1
    if experiment.fresh and RunDir(folder / name).exists():
        count += 1
    return RunDir(folder / (name if count == 1 else f"{name}.{count}"))


# -- Slurm -----------------------------------------------------------------------------------------------------


def _through_slurm(runs: Sequence[Prepared]) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    with rundir.lock(runs[0].run.path.parent) as held:
        wanted = []
        for prepared in runs:
            done = _already(prepared)
            if prepared.run.id in outcomes:
                tell.same_run(prepared)
                continue
            if done is None:
                wanted.append(prepared)
            outcomes[prepared.run.id] = done or Outcome(prepared.run.id, str(prepared.run.path), "submitted")
        for group in _alike(wanted):
            submission = Submission.of(group)
            for prepared, job_id in zip(group, submission.send(held), strict=True):
                outcomes[prepared.run.id] = replace(outcomes[prepared.run.id], job_id=job_id)
            tell.submitted(submission, outcomes[group[0].run.id].job_id)
    for outcome in outcomes.values():
        tell.came_of_it(outcome)
    return [outcomes[prepared.run.id] for prepared in runs]


def _waited_for(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Holds on until Slurm has done with every run."""
    ended = []
    for outcome in outcomes:
        run = RunDir(Path(outcome.run_dir))
        while not run.result() and _in_slurms_hands(run):
            time.sleep(_WAIT_SECONDS)
        ended.append(replace(outcome, action="trained" if run.result() else "failed"))
        tell.came_of_it(ended[-1])
    return ended


def _in_slurms_hands(run: RunDir) -> bool:
    """Whether the run's job waits or runs; one that squeue has just lost sight of is looked for in accounting."""
    jobs = scheduler.queue()
    return state_of(run, jobs or scheduler.accounting([last_job_id(run)])).live


def _already(prepared: Prepared) -> Outcome | None:
    """The outcome of a run that needs no submission: finished, or in Slurm's hands."""
    run = prepared.run
    if not run.submissions():
        return None
    if run.result():
        tell.changed_code(prepared)
        return Outcome(run.id, str(run.path), "finished", last_job_id(run))
    try:
        settle(run)
        state = state_of(run, scheduler.queue())
    except scheduler.SlurmError as error:
        raise Failed(f"Slurm does not answer ({error.message}), so whether {run.id} runs is not known") from error
    return Outcome(run.id, str(run.path), "running", last_job_id(run)) if state.live else None


def _alike(runs: Iterable[Prepared]) -> list[list[Prepared]]:
    """Runs that one job array can hold: those that ask for the same resources, in the same environment."""

    def resources(prepared: Prepared) -> str:
        return repr((prepared.request, prepared.experiment.environment))

    return [list(group) for _, group in groupby(sorted(runs, key=resources), key=resources)]


# -- here ------------------------------------------------------------------------------------------------------


def _here(prepared: Prepared) -> Outcome:
    from truba_runner.local import see_through, start_here

    run = prepared.run
    action = "finished"
    if not run.result():
        with rundir.lock(run.path.parent):
            worker = None if state_of(run, {}).live else start_here(prepared)
        action = "running"
        if worker is not None:
            see_through(prepared, worker)
            action = "trained" if run.result() else "failed"
    outcome = Outcome(run.id, str(run.path), action, last_job_id(run))
    if action == "finished":
        tell.changed_code(prepared)
    tell.came_of_it(outcome)
    return outcome
