"""What becomes of a sweep: all of its runs checked together, those that are missing or failed handed to Slurm."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from truba_runner import job_module, lr_find, places, tell
from truba_runner.config import Experiment
from truba_runner.errors import Problem, Refused
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
from truba_runner.search.space import KINDS
from truba_runner.submit import Prepared
from truba_runner.sweeps import rules, sweeper_job
from truba_runner.sweeps.compose import Composed
from truba_runner.sweeps.record import Member, SweepDir, identity
from truba_runner.sweeps.submission import planned, through_slurm
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
    if any(run.composed.experiment.sweep.kind in KINDS for run in checked):
        # A search has jobs of its own, and goes by no other's.
        outcomes = [launch(run.composed.experiment, run.composed.selector, may_wait=False) for run in checked]
        return wait_for(outcomes) if waits(checked[0].composed.experiment) else outcomes
    dry_run = any(run.composed.experiment.dry_run for run in checked)
    prepared = _prepared(checked, provide_data=not dry_run)
    runs_folder = prepared[0].run.path.parent
    names = [one.experiment.name for one in prepared]
    sweep = SweepDir.of(runs_folder, identity(names, identity_of_batches or [one.run.id for one in prepared]))
    if dry_run:
        tell.dry_run(planned(prepared, sweep))
        return [Outcome(one.run.id, str(one.run.path), "dry_run") for one in prepared]
    places.remember(runs_folder)
    first = prepared[0].experiment
    about = {"name": first.name, "command": sys.argv[1:], **_pick(first)}
    members = [_member(one, run.composed) for one, run in zip(prepared, checked, strict=True)]
    if first.cluster.scheduler != "slurm":
        sweep.describe(members, **about)
        outcomes = [_here(one) for one in prepared]
    else:
        on_slurm_or_failed()
        if first.sweep.sweeper_partition and not inside_job:
            if not sweep.description():
                # Later it is the job that describes it.
                sweep.describe([], **about)
            sweeper_job.submit(first, prepared[0].job_file, sweep)
        outcomes = through_slurm(prepared, sweep, lambda: sweep.describe(members, **about))
        if first.launcher.wait or inside_job:
            outcomes = wait_for(outcomes)
    tell.sweep(sweep.id, outcomes)
    return outcomes


def _here(prepared: Prepared) -> Outcome:
    """Trains a run on this machine, its finder first."""
    needed = prepared.finder
    if needed and not prepared.run.result() and not prepared.run.found_rate() and not needed.run.result():
        found = train_here(needed)
        if found.action != "trained":
            tell.came_of_it(found)
            return Outcome(prepared.run.id, str(prepared.run.path), "failed")
    return train_here(prepared)


def _member(prepared: Prepared, composed: Composed) -> Member:
    if prepared.finder is None:
        return Member(prepared.run.id, composed.values)
    return Member(prepared.run.id, composed.values, prepared.finder.run.id, lr_find.taken(prepared.experiment))


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
        experiment = lr_find.with_default(absolute(composed.experiment))
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
        found = held[environment] if provide_data else {}
        run_dir = newest_run_dir(lr_find.training_of(experiment), listed[folder])
        one = Prepared(lr_find.training_of(experiment), run_dir, run.plan.request, run.job_file, found=found)
        if experiment.sweep.kind == lr_find.KIND:
            finder = lr_find.finder_of(experiment)
            one = replace(one, finder=replace(one, experiment=finder, run=newest_run_dir(finder, listed[folder])))
        prepared.append(one)
    return prepared
