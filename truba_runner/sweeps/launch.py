"""What becomes of a sweep: all of its runs checked together, those that are missing or failed handed to Slurm."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from truba_runner import changed_code, job_module, places, rundir, scheduler, tell
from truba_runner.config import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.launch import (
    absolute,
    in_environment,
    launch,
    newest_run_dir,
    on_slurm_or_failed,
    train_here,
    wait_for,
    waits,
    with_data,
)
from truba_runner.plan import Plan, plan
from truba_runner.probe import Found
from truba_runner.queue.automatic import Automatic
from truba_runner.state import last_job_id, state_of
from truba_runner.submit import Prepared, settle
from truba_runner.sweeps import canary, rules, sweeper_job
from truba_runner.sweeps.array import ArraySubmission
from truba_runner.sweeps.compose import Composed
from truba_runner.sweeps.record import Member, SweepDir, identity
from truba_runner.tell import Outcome

_NAMED = 3


@dataclass
class Refusals:
    """What is wrong with the runs of a sweep, and with which of them."""

    runs: int
    found: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, refused: Refused, label: str) -> None:
        """`label` tells the run from the others."""
        for problem in refused.problems:
            self.found.setdefault(problem, []).append(label)

    def raise_if_any(self) -> None:
        """Refuses the whole sweep.

        Raises:
            Refused: naming the runs of each problem.
        """
        if self.found:
            raise Refused(*(replace(one, remedy=f"{one.remedy} {self._which(of)}") for one, of in self.found.items()))

    def _which(self, labels: Sequence[str]) -> str:
        if len(labels) == self.runs:
            return "All runs of the sweep are refused for it."
        more = f"; and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
        return f"Nothing was submitted; it is {len(labels)} of {self.runs} runs: {'; '.join(labels[:_NAMED])}{more}."


@dataclass(frozen=True)
class _Run:
    """A run that was found to break no rule."""

    composed: Composed
    plan: Plan
    job_file: Path


def launch_sweep(
    runs: Sequence[Composed],
    label: Callable[[int], str],
    identity_of_batches: Sequence[str] = (),
    inside_job: bool = False,
    refusals: Refusals | None = None,
) -> list[Outcome]:
    """Submits or trains these runs, one outcome each, in order; `label` tells the run of an index from the others.

    `identity_of_batches`: what the sweep is known by where its runs come in batches. `inside_job`: this command is the
    job that was asked for with `sweep.sweeper_partition`. `refusals`: of the sweep's runs that could not be composed.

    Raises:
        Refused: a run breaks a rule; then none of them is submitted.
        SweeperSubmitted: the command goes on as a job.
        Failed: Slurm does not answer.
    """
    checked = _checked(runs, label, refusals or Refusals(len(runs)))
    for warning in dict.fromkeys(warning for run in checked for warning in run.plan.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if any(run.composed.experiment.sweep.kind for run in checked):
        # A search has jobs of its own, and goes by no other's.
        outcomes = [launch(run.composed.experiment, run.composed.selector, may_wait=False) for run in checked]
        return wait_for(outcomes) if waits(checked[0].composed.experiment) else outcomes
    dry_run = any(run.composed.experiment.dry_run for run in checked)
    prepared = _prepared(checked, provide_data=not dry_run)
    runs_folder = prepared[0].run.path.parent
    names = [one.experiment.name for one in prepared]
    sweep = SweepDir.of(runs_folder, identity(names, identity_of_batches or [one.run.id for one in prepared]))
    if dry_run:
        tell.dry_run(_with_canary(prepared[0], prepared, sweep))
        return [Outcome(one.run.id, str(one.run.path), "dry_run") for one in prepared]
    places.remember(runs_folder)
    first = prepared[0].experiment
    about = {"name": first.name, "command": sys.argv[1:], **_pick(first)}
    members = [Member(one.run.id, run.composed.values) for one, run in zip(prepared, checked, strict=True)]
    if first.cluster.scheduler != "slurm":
        sweep.describe(members, **about)
        outcomes = [train_here(one) for one in prepared]
    else:
        on_slurm_or_failed()
        if first.sweep.sweeper_partition and not inside_job:
            sweep.describe([], **about)
            sweeper_job.submit(first, prepared[0].job_file, sweep)
        outcomes = _through_slurm(prepared, sweep, lambda: sweep.describe(members, **about))
        if first.launcher.wait or inside_job:
            outcomes = wait_for(outcomes)
    tell.sweep(sweep.id, outcomes)
    return outcomes


def _pick(experiment: Experiment) -> dict[str, str]:
    """By which metric a run is better than another."""
    return {"monitor": experiment.checkpoint.monitor, "mode": experiment.checkpoint.mode}


def _checked(runs: Sequence[Composed], label: Callable[[int], str], refusals: Refusals) -> list[_Run]:
    """Plans for all, or every broken rule of all at once, with what is refused already."""
    checked = []
    find = lru_cache(maxsize=None)(lambda module: job_module.find(module, Path.cwd()))
    host = socket.gethostname()
    automatic = Automatic()
    for index, composed in enumerate(runs):
        experiment = absolute(composed.experiment)
        try:
            experiment = automatic.settled(experiment, Path(experiment.job.module))
            made = plan(experiment, login_node=host)
            if problems := list(rules.problems(experiment, made.request)):
                raise Refused(*problems)
        except Refused as refused:
            refusals.add(refused, label(index))
            made = None
        try:
            job_file = find(experiment.job.module)
        except Refused as refused:
            refusals.add(refused, label(index))
        else:
            if made is not None:
                checked.append(_Run(replace(composed, experiment=experiment), made, job_file))
    refusals.raise_if_any()
    places_of = {
        (one.cluster.scheduler, one.cluster.runs_folder) for one in (run.composed.experiment for run in checked)
    }
    if len(places_of) > 1:
        folders = " and ".join(sorted(folder for _, folder in places_of))
        raise Refused(Problem(f"runs in {folders}", "a sweep has one cluster and one folder.", "Give two commands."))
    return checked


def _prepared(checked: Sequence[_Run], provide_data: bool) -> list[Prepared]:
    provided: dict[tuple[str, str], str] = {}
    held: dict[str, Found] = {}
    prepared = []
    listed: dict[str, set[str]] = {}
    for run in checked:
        experiment = run.composed.experiment
        if provide_data:
            key = (repr(experiment.data), run.composed.selector)
            if key not in provided:
                provided[key] = with_data(experiment, run.composed.selector).data.name
            if provided[key] != experiment.data.name:
                experiment = replace(experiment, data=replace(experiment.data, name=provided[key]))
            environment = repr((experiment.environment, experiment.job.backend))
            if environment not in held:
                held[environment] = in_environment(experiment)
        folder = experiment.cluster.runs_folder
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if Path(folder).is_dir() else set()
        run_dir = newest_run_dir(experiment, listed[folder])
        found = held[environment] if provide_data else {}
        prepared.append(Prepared(experiment, run_dir, run.plan.request, run.job_file, found=found))
    return prepared


# -- Slurm -----------------------------------------------------------------------------------------------------


def _through_slurm(runs: Sequence[Prepared], sweep: SweepDir, describe: Callable[[], None]) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    with rundir.lock(sweep.runs_folder) as held:
        describe()
        wanted: list[Prepared] = []
        same: dict[str, Prepared] = {}
        for prepared, done in zip(runs, _already(runs), strict=True):
            if prepared.run.id in outcomes:
                same.setdefault(prepared.run.id, prepared)
                continue
            if done is None:
                wanted.append(prepared)
            outcomes[prepared.run.id] = done or Outcome(prepared.run.id, str(prepared.run.path), "submitted")
        if same:
            tell.same_run(list(same.values()))
        if runs[0].run.has_lived():
            # Its own job could not, where a compute node may not, and trains on.
            canary.release(sweep, runs[0].run.id)
        for array in _with_canary(runs[0], wanted, sweep):
            if array.canary:
                array = replace(array, canary_job=outcomes[array.canary].job_id)
            job_id = array.send(held)
            for index, task in enumerate(array.tasks):
                for prepared in task:
                    outcomes[prepared.run.id] = replace(outcomes[prepared.run.id], job_id=f"{job_id}_{index}")
            tell.submitted(array, job_id)
    return [outcomes[prepared.run.id] for prepared in runs]


def _already(runs: Sequence[Prepared]) -> list[Outcome | None]:
    """For each run its outcome if it needs no submission, being finished or in Slurm's hands.

    Raises:
        Refused: the code of one that was begun has changed.
        Failed: Slurm does not answer.
    """
    begun = set(os.listdir(runs[0].run.path.parent))
    open_runs: list[Prepared] = []
    outcomes: dict[str, Outcome | None] = {}
    for prepared in runs:
        run = prepared.run
        outcomes[run.id] = None
        if run.id not in begun or not run.submissions():
            continue
        if run.result():
            tell.changed_code(prepared)
            outcomes[run.id] = Outcome(run.id, str(run.path), "finished", last_job_id(run))
        else:
            open_runs.append(prepared)
    try:
        for prepared in open_runs:
            settle(prepared.run)
        # After the last one was settled: what was found on its way to the queue is in it.
        jobs = scheduler.queue() if open_runs else {}
    except scheduler.SlurmError as error:
        raise Failed(
            f"Slurm does not answer ({error.message}), so whether the runs are in its hands is not known"
        ) from error
    problems = []
    for prepared in open_runs:
        run = prepared.run
        if state_of(run, jobs).live:
            outcomes[run.id] = Outcome(run.id, str(run.path), "running", last_job_id(run))
        elif problem := changed_code.problem(prepared):
            problems.append(problem)
    if problems:
        raise Refused(*problems)
    return [outcomes[prepared.run.id] for prepared in runs]


def _with_canary(first: Prepared, wanted: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """The arrays for these runs; where the sweep's first run goes ahead, that is first and they wait for it."""
    if not first.experiment.sweep.canary or first.run.has_lived():
        return _arrays(wanted, sweep)
    others = [prepared for prepared in wanted if prepared.run.id != first.run.id]
    waiting = [replace(array, canary=first.run.id, canary_job="CANARY") for array in _arrays(others, sweep)]
    if len(others) == len(wanted):
        return waiting
    ahead = ArraySubmission(
        first, sweep=sweep, tasks=[[first]], allocation=first.request, places=1, max_parallel=1, goes_ahead=True
    )
    return [ahead, *waiting]


def _arrays(runs: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """Job arrays for runs, each for those that ask for the same, no larger than Slurm takes one."""
    if not runs:
        return []
    groups: dict[str, list[Prepared]] = {}
    for prepared in runs:
        one = prepared.experiment
        key = repr((prepared.request, one.environment, one.sweep, prepared.job_file))
        groups.setdefault(key, []).append(prepared)
    largest = _largest_array(runs[0].experiment)
    parts = [part for group in groups.values() for part in _parts(_tasks(group), largest)]
    return [_array(tasks, sweep, len(parts)) for tasks in parts]


def _tasks(group: Sequence[Prepared]) -> list[Sequence[Prepared]]:
    pack = group[0].experiment.sweep.pack
    return [group[start : start + pack] for start in range(0, len(group), pack)]


def _parts(tasks: Sequence[Sequence[Prepared]], largest: int) -> Iterable[Sequence[Sequence[Prepared]]]:
    return (tasks[start : start + largest] for start in range(0, len(tasks), largest))


def _largest_array(experiment: Experiment) -> int:
    return experiment.cluster.max_array_size or scheduler.max_array_size()


def _array(tasks: Sequence[Sequence[Prepared]], sweep: SweepDir, arrays: int) -> ArraySubmission:
    first = tasks[0][0]
    request = rules.allocation(first.request, first.experiment)
    at_once = _tasks_at_once(first.experiment, request.total_cores, arrays)
    return ArraySubmission(
        first,
        sweep=sweep,
        tasks=tasks,
        allocation=request,
        places=first.experiment.sweep.pack,
        max_parallel=at_once or len(tasks),
    )


@lru_cache(maxsize=64)
def _core_limit(account: str, otherwise: int) -> int:
    return scheduler.core_limit(account) or otherwise


def _tasks_at_once(experiment: Experiment, cores: int, arrays: int) -> int:
    """Tasks of an array that may run at once; 0: as many as there is room for."""
    asked = experiment.sweep.max_parallel
    if asked is not None:
        # What was asked for holds for the sweep, whose arrays know nothing of each other.
        return max(1, asked // experiment.sweep.pack // arrays)
    limit = _core_limit(experiment.resources.account, experiment.cluster.account_cores)
    return max(1, limit // cores) if limit else 0
