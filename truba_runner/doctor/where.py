"""Check which of the user's experiments can run on which partition, in the chosen environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from truba_runner.code import job_module
from truba_runner.code.network_size import Sizes
from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Experiment
from truba_runner.doctor import FAULT, NOTE, OK, Finding, Patient
from truba_runner.environment import probe
from truba_runner.environment.probe import Found
from truba_runner.errors import Problem, Refused
from truba_runner.language import _
from truba_runner.rules.experiment import plan
from truba_runner.rules.gpus import builds, memory
from truba_runner.submission.automatic import AUTO


def table(patient: Patient) -> Iterator[Finding]:
    """Yield a table of partitions and experiments, each reason for a `no` once, and whether the chosen one can run."""
    chosen = patient.experiment
    if chosen.cluster.scheduler != "slurm":
        return
    held, sizes = _held(chosen), Sizes()
    experiments = {**patient.others} or {chosen.name: chosen}
    reasons: dict[str, int] = {}
    rows = [("", *experiments)]
    for name, facts in chosen.cluster.partitions.items():
        for constraint in facts.families or [""]:
            label = f"{name} ({constraint})" if constraint else name
            cells = [_cell(_placed(one, name, constraint), held, sizes, reasons) for one in experiments.values()]
            rows.append((label, *cells))
    checked = _("yes, or the number of the reason below")
    says = checked if held else _("without a check of the environment, which is not known yet")
    yield Finding(NOTE if reasons else OK, _("where it can run"), says, table=rows)
    for reason, number in reasons.items():
        yield Finding(NOTE, f"({number})", reason)
    if AUTO not in {chosen.resources.partition, chosen.resources.time} and (wrong := _problems(chosen, held, sizes)):
        received = f"+experiment={chosen.name} resources.partition={chosen.resources.partition}"
        yield Finding(FAULT, received, f"{wrong[0].received}: {wrong[0].rule}", wrong[0].remedy)


def _held(experiment: Experiment) -> Found:
    """Return the environment's report; empty if it is unknown. Another check reports what it lacks."""
    try:
        held = probe.found_here(experiment)
    except Refused:
        held = probe.known(experiment)
    return {} if isinstance(held, str) else held


def _placed(experiment: Experiment, name: str, constraint: str) -> Experiment:
    """Return the experiment moved to a partition, with that partition's defaults."""
    facts = experiment.cluster.partitions[name]
    if not constraint and facts.feature_required and facts.features:
        constraint = facts.features[0]
    gpus = max(1, experiment.resources.gpus) if facts_of(experiment.cluster, name, constraint).gpus_per_node else 0
    # `auto` is estimated from earlier runs; no partition's limit is in question.
    time = "1h" if experiment.resources.time == AUTO else experiment.resources.time
    resources = replace(experiment.resources, partition=name, constraint=constraint, gpus=gpus, cores=None, time=time)
    return replace(experiment, resources=resources)


def _cell(experiment: Experiment, held: Found, sizes: Sizes, reasons: dict[str, int]) -> str:
    """Return `yes`, or the number of the first reason why the experiment cannot run."""
    wrong = _problems(experiment, held, sizes)
    if not wrong:
        return _("yes")
    first = wrong[0]
    return str(reasons.setdefault(f"{first.received}: {first.rule}", len(reasons) + 1))


def _problems(experiment: Experiment, held: Found, sizes: Sizes) -> list[Problem]:
    try:
        plan(experiment)
    except Refused as refused:
        return list(refused.problems)
    if held and (missing := probe.lacking(experiment, held)):
        return [missing]
    unfit = list(builds.problems(experiment, held, probe.words(experiment.environment)))
    return unfit or list(_too_large(experiment, sizes))


def _too_large(experiment: Experiment, sizes: Sizes) -> Iterator[Problem]:
    try:
        size = sizes.of(experiment, job_module.find(experiment.job.module, Path.cwd()))
    except Refused as refused:
        yield from refused.problems
        return
    if size:
        yield from memory.problems(experiment, size)
