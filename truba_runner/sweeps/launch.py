"""What becomes of a sweep: all of its runs checked together, those that are missing or failed handed to Slurm."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from truba_runner import damage, job_module, lr_find, places, snapshot, tell, weights
from truba_runner.changed_code import refuse_together
from truba_runner.composed import absolute
from truba_runner.config import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, counted
from truba_runner.launch import (
    go,
    in_environment,
    newest_run_dir,
    on_slurm_or_failed,
    refuse_damaged,
    refuse_others,
    train_here,
    wait_for,
    waits,
    with_data,
)
from truba_runner.plan import Plan, plan
from truba_runner.probe import Found
from truba_runner.queue.automatic import Automatic
from truba_runner.request import derive
from truba_runner.search import submission as search
from truba_runner.search.space import jobs
from truba_runner.submit import Prepared
from truba_runner.sweeps import rules, sweeper_job
from truba_runner.sweeps.compose import Composed
from truba_runner.sweeps.record import Member, SweepDir, identity
from truba_runner.sweeps.submission import each_once, planned, through_slurm
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
            return _("All runs of the sweep are refused for it.")
        left = len(labels) - _NAMED
        more = [counted("and {count} more", "and {count} more", left)] if left > 0 else []
        return _(
            "Nothing was submitted; it is {count} of {total} runs: {runs}.",
            count=len(labels),
            total=self.runs,
            runs="; ".join([*labels[:_NAMED], *more]),
        )


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
    _warn(checked)
    dry_run = any(run.composed.experiment.dry_run for run in checked)
    refuse_others(checked[0].composed.experiment, [])
    prepared = _prepared(checked, provide_data=not dry_run)
    first, names = prepared[0].experiment, [one.experiment.name for one in prepared]
    runs_folder = prepared[0].run.path.parent
    sweep = SweepDir.of(runs_folder, identity(names, identity_of_batches or [one.run.id for one in prepared]))
    there = [run for one in prepared for run in (one.run, *([one.finder.run] if one.finder else []))]
    refuse_others(first, there, sweep.path)
    if not dry_run:
        refuse_damaged(there)
        _refuse_damaged_sweep(sweep)
    searches = any(one.experiment.sweep.kind for one in prepared)
    if searches:
        search.refuse_what_cannot_go_on([one for one in prepared if one.experiment.sweep.kind])
    if dry_run:
        return _dry_run(prepared, sweep, searches)
    places.remember(runs_folder)
    members = [_member(one, run.composed) for one, run in zip(prepared, checked, strict=True)]

    def describe(of: Sequence[Member] = members) -> None:
        sweep.describe(of, name=first.name, command=sys.argv[1:], **_pick(first))

    if searches or first.cluster.scheduler != "slurm":
        _refuse_changed_code([one for one in prepared if not one.experiment.sweep.kind])
        describe()
        outcomes = _one_by_one(prepared, partial(go, may_wait=False) if searches else _here)
        if waits(first):
            outcomes = wait_for(outcomes)
    else:
        outcomes = _on_slurm(prepared, sweep, describe, inside_job)
    tell.sweep(sweep.id, outcomes)
    return outcomes


def _refuse_damaged_sweep(sweep: SweepDir) -> None:
    """Its record is written anew with each command, with what stands in it.

    Raises:
        Failed: what that is cannot be told.
    """
    if sweep.path.exists() and (why := damage.of_sweep(sweep.path)):
        told = _("{sweep}: {why}. Move {folder} away, and give the command again.", sweep=sweep.id, why=why,
                 folder=sweep.path)  # fmt: skip
        raise Failed(told)


def _warn(checked: Sequence[_Run]) -> None:
    """Says once what is true of any of the runs."""
    told = (warning for run in checked for warning in (*run.plan.warnings, *rules.warnings(run.composed.experiment)))
    for warning in dict.fromkeys(told):
        print(_("warning: {text}", text=warning), file=sys.stderr)


def _on_slurm(
    prepared: Sequence[Prepared], sweep: SweepDir, describe: Callable[..., None], inside_job: bool
) -> list[Outcome]:
    """Submits the runs, or the job that is to do so."""
    on_slurm_or_failed()
    first = prepared[0].experiment
    if first.sweep.sweeper_partition and not inside_job:
        if not sweep.description():
            # Later it is the job that describes it.
            describe([])
        sweeper_job.submit(first, prepared[0].job_file, sweep)
    outcomes = through_slurm(prepared, sweep, describe)
    return wait_for(outcomes) if first.launcher.wait or inside_job else outcomes


def _here(prepared: Prepared) -> Outcome:
    """Trains a run on this machine, its finder first."""
    needed = prepared.finder
    if needed and not prepared.run.result() and not prepared.run.found_rate() and not needed.run.result():
        found = train_here(needed)
        if found.action != "trained":
            tell.came_of_it(found)
            return Outcome(prepared.run.id, str(prepared.run.path), "failed", stopped=found.stopped)
    return train_here(prepared)


def _member(prepared: Prepared, composed: Composed) -> Member:
    if prepared.finder is None:
        return Member(prepared.run.id, composed.values)
    return Member(prepared.run.id, composed.values, prepared.finder.run.id, lr_find.taken(prepared.experiment))


def _dry_run(runs: Sequence[Prepared], sweep: SweepDir, searches: bool) -> list[Outcome]:
    each = each_once(runs)
    if searches:
        for prepared in each:
            go(prepared)
    else:
        tell.dry_run(planned(each, sweep))
    return [Outcome(one.run.id, str(one.run.path), "dry_run") for one in runs]


def _one_by_one(runs: Sequence[Prepared], start: Callable[[Prepared], Outcome]) -> list[Outcome]:
    """Starts each, after the one before; once this command was told to end, the others are left."""
    outcomes: dict[str, Outcome] = {}
    stopped = False
    for prepared in each_once(runs):
        run = prepared.run
        outcomes[run.id] = Outcome(run.id, str(run.path), "left") if stopped else start(prepared)
        stopped = stopped or outcomes[run.id].stopped
    return [outcomes[prepared.run.id] for prepared in runs]


def _pick(experiment: Experiment) -> dict[str, str]:
    """By which metric a run is better than another."""
    if experiment.sweep.kind:
        return {"monitor": experiment.sweep.objective, "mode": experiment.sweep.direction}
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
            snapshot.refuse_too_much(experiment, job_file)
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
        folders = _(" and ").join(sorted(folder for _cluster, folder in places_of))
        received, rule = _("runs in {folders}", folders=folders), _("a sweep has one cluster and one folder.")
        raise Refused(Problem(received, rule, _("Give two commands.")))
    return checked


def _prepared(checked: Sequence[_Run], provide_data: bool) -> list[Prepared]:
    provided: dict[tuple[str, str, str], str] = {}
    held: dict[str, Found] = {}
    prepared = []
    listed: dict[str, set[str]] = {}
    for run in checked:
        experiment = run.composed.experiment
        if provide_data:
            # Each network has weights of its own.
            key = (repr(experiment.data), repr([*map(weights.source, jobs(experiment))]), run.composed.selector)
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
        training = lr_find.training_of(experiment)
        run_dir = search.directory(experiment) if training.sweep.kind else newest_run_dir(training, listed[folder])
        one = Prepared(training, run_dir, run.plan.request, run.job_file, found=found)
        if experiment.sweep.kind == lr_find.KIND:
            finder = lr_find.finder_of(experiment)
            finder_dir = newest_run_dir(finder, listed[folder])
            one = replace(one, finder=replace(one, experiment=finder, run=finder_dir, request=derive(finder)))
        prepared.append(one)
    return prepared


def _refuse_changed_code(runs: Sequence[Prepared]) -> None:
    """Those that were begun with other code may not go on with this one; of those that are finished it is told.

    Raises:
        Refused: there are such runs.
    """
    tell.changed_code([one for one in runs if one.run.result()])
    refuse_together([one for one in runs if not one.run.result()])
