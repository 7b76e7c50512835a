"""Launch a sweep: check all runs together, then submit or train those that are missing or failed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from truba_runner.config import lr_find
from truba_runner.config.composing.compose import absolute
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, counted
from truba_runner.launch.here import train_here
from truba_runner.launch.prepare import Checked, Checks, Provision, on_slurm_or_failed, refuse_damaged, refuse_others
from truba_runner.launch.run import go
from truba_runner.launch.wait import wait_for, waits
from truba_runner.log import warn
from truba_runner.older_python import zip_equal
from truba_runner.rules import sweep as rules
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.sweep_directory import Member, SweepDir, identity
from truba_runner.search import submission as search
from truba_runner.submission import messages
from truba_runner.submission.changed_code import refuse_together
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.sweeps import sweeper_job
from truba_runner.sweeps.compose import Composed
from truba_runner.sweeps.submission import each_once, planned, through_slurm

_NAMED = 3


@dataclass
class Refusals:
    """Problems of a sweep's runs, each with the labels of the runs that have it."""

    runs: int
    found: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, refused: Refused, label: str) -> None:
        """Add the problems of one run; `label` identifies it."""
        for problem in refused.problems:
            self.found.setdefault(problem, []).append(label)

    def raise_if_any(self) -> None:
        """Refuse the whole sweep if any run has a problem.

        Raises:
            truba_runner.errors.Refused: there are problems; each names its runs.
        """
        if self.found:
            raise Refused(*(replace(one, remedy=f"{one.remedy} {self._which(of)}") for one, of in self.found.items()))

    def _which(self, labels: Sequence[str]) -> str:
        if len(labels) == self.runs:
            return _("All runs of the sweep are refused for this reason.")
        left = len(labels) - _NAMED
        more = [counted("and {count} more", "and {count} more", left)] if left > 0 else []
        return _(
            "Nothing was submitted; {count} of {total} runs are affected: {runs}.",
            count=len(labels),
            total=self.runs,
            runs="; ".join([*labels[:_NAMED], *more]),
        )


def launch_sweep(
    runs: Sequence[Composed],
    label: Callable[[int], str],
    identity_of_batches: Sequence[str] = (),
    inside_job: bool = False,
    refusals: Refusals | None = None,
) -> list[Outcome]:
    """Submit or train these runs; return one outcome each, in order. `label` names the run of an index.

    `identity_of_batches`: what identifies a sweep whose runs come in batches. `inside_job`: this command is the job
    that `sweep.sweeper_partition` requested. `refusals`: problems of the runs that could not be composed.

    Raises:
        truba_runner.errors.Refused: a run breaks a rule; then none of them is submitted.
        truba_runner.sweeps.sweeper_job.SweeperSubmitted: a job runs the sweeper.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    checked = _checked(runs, label, refusals or Refusals(len(runs)))
    _warn(checked)
    dry_run = any(run.experiment.dry_run for run in checked)
    refuse_others(checked[0].experiment, [])
    provision = Provision(provide=not dry_run)
    prepared = [provision.prepare(one, composed.selector) for one, composed in zip_equal(checked, runs)]
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
    runs_folders.remember(runs_folder)
    members = [_member(one, composed) for one, composed in zip_equal(prepared, runs)]

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
    messages.sweep(sweep.id, outcomes)
    return outcomes


def _refuse_damaged_sweep(sweep: SweepDir) -> None:
    """Refuse a sweep whose record is damaged, as each command rewrites the record from its content.

    Raises:
        truba_runner.errors.Failed: the record is damaged.
    """
    if sweep.path.exists() and (why := damage.of_sweep(sweep.path)):
        message = _("{sweep}: {why}. Move {folder} away, and give the command again.", sweep=sweep.id, why=why,
                 folder=sweep.path)  # fmt: skip
        raise Failed(message)


def _warn(checked: Sequence[Checked]) -> None:
    """Print the warnings of all runs, each once."""
    warnings = (warning for run in checked for warning in (*run.plan.warnings, *rules.warnings(run.experiment)))
    for warning in dict.fromkeys(warnings):
        warn(warning)


def _on_slurm(
    prepared: Sequence[Prepared], sweep: SweepDir, describe: Callable[..., None], inside_job: bool
) -> list[Outcome]:
    """Submit the runs, or the sweeper's job that will submit them."""
    on_slurm_or_failed()
    first = prepared[0].experiment
    if first.sweep.sweeper_partition and not inside_job:
        if not sweep.description():
            # Once there is a description, only the job updates it.
            describe([])
        sweeper_job.submit(first, prepared[0].job_file, sweep)
    outcomes = through_slurm(prepared, sweep, describe)
    return wait_for(outcomes) if first.launcher.wait or inside_job else outcomes


def _here(prepared: Prepared) -> Outcome:
    """Train a run on this machine, its learning-rate finder first."""
    needed = prepared.finder
    if (
        needed
        and not prepared.run.result()
        and prepared.run.found_rate().learning_rate is None
        and not needed.run.result()
    ):
        found = train_here(needed)
        if found.action != Action.TRAINED:
            messages.came_of_it(found)
            return Outcome(prepared.run.id, str(prepared.run.path), Action.FAILED, stopped=found.stopped)
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
        messages.dry_run(planned(each, sweep))
    return [Outcome(one.run.id, str(one.run.path), Action.DRY_RUN) for one in runs]


def _one_by_one(runs: Sequence[Prepared], start: Callable[[Prepared], Outcome]) -> list[Outcome]:
    """Start the runs one after the other; after a signal to end, mark those that were not started as left."""
    outcomes: dict[str, Outcome] = {}
    stopped = False
    for prepared in each_once(runs):
        run = prepared.run
        outcomes[run.id] = Outcome(run.id, str(run.path), Action.LEFT) if stopped else start(prepared)
        stopped = stopped or outcomes[run.id].stopped
    return [outcomes[prepared.run.id] for prepared in runs]


def _pick(experiment: Experiment) -> dict[str, str]:
    """Return the metric that ranks the runs, and its direction."""
    if experiment.sweep.kind:
        return {"monitor": experiment.sweep.objective, "mode": experiment.sweep.direction}
    return {"monitor": experiment.checkpoint.monitor, "mode": experiment.checkpoint.mode}


def _checked(runs: Sequence[Composed], label: Callable[[int], str], refusals: Refusals) -> list[Checked]:
    """Return the checked runs, or refuse with the problems of all runs and those already in `refusals`."""
    checks, checked = Checks(), []
    for index, composed in enumerate(runs):
        try:
            checked.append(checks.check(lr_find.with_default(absolute(composed.experiment)), rules.problems))
        except Refused as refused:
            refusals.add(refused, label(index))
    refusals.raise_if_any()
    places_of = {(one.cluster.scheduler, one.cluster.runs_folder) for one in (run.experiment for run in checked)}
    if len(places_of) > 1:
        folders = _(" and ").join(sorted(folder for _cluster, folder in places_of))
        received, rule = _("runs in {folders}", folders=folders), _("a sweep has one cluster and one folder.")
        raise Refused(Problem(received, rule, _("Give two commands.")))
    return checked


def _refuse_changed_code(runs: Sequence[Prepared]) -> None:
    """Refuse unfinished runs that were started with other code; warn about finished ones.

    Raises:
        truba_runner.errors.Refused: there are such unfinished runs.
    """
    messages.changed_code([one for one in runs if one.run.result()])
    refuse_together([one for one in runs if not one.run.result()])
