"""Validate `train.mixed_precision` against the number formats of the partition's GPUs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment
from truba_runner.config.search_space import listed_values
from truba_runner.errors import Problem
from truba_runner.language import _
from truba_runner.rules.gpus.architecture import BFLOAT16, HALF_PRECISION, capability_of, numbers

_KEY = "train.mixed_precision"
_BFLOAT16, _FLOAT16 = ("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report bfloat16 on GPUs without bfloat16 arithmetic."""
    capability = capability_of(experiment)
    if not capability or capability >= BFLOAT16:
        return
    others = [
        name
        for name, facts in experiment.cluster.partitions.items()
        if numbers(facts.compute_capability) >= BFLOAT16 and facts.gpus_per_node
    ]
    for key, policy in _policies(experiment):
        if policy not in _BFLOAT16:
            continue
        rule = _(
            "{gpu} of {partition} has no bfloat16: that needs compute capability {least}, and it has {has} "
            "(conf/cluster/{cluster}.yaml, compute_capability).",
            gpu=asked_for(experiment).gpu, partition=experiment.resources.partition,
            least=".".join(map(str, BFLOAT16)), has=".".join(map(str, capability)), cluster=experiment.cluster.name,
        )  # fmt: skip
        remedies = [f"{_KEY}={policy.replace('bfloat16', 'float16')}"]
        if others:
            remedies.append(f"resources.partition={_(' or ').join(others)}")
        remedy = _("Set {choice}.", choice=_(" or ").join(remedies))
        if key != _KEY:
            remedy = _("Leave this value out of the search.") + " " + remedy
        yield Problem(f"{key}={policy}", rule, remedy)


def warnings(experiment: Experiment) -> Iterator[str]:
    """Warn of half precision on GPUs that are no faster with it."""
    capability = capability_of(experiment)
    if not capability or capability >= HALF_PRECISION:
        return
    for key, policy in _policies(experiment):
        if policy in _FLOAT16:
            yield _(
                "{setting} saves memory on {gpu}, but no time: this GPU has no tensor cores.",
                setting=f"{key}={policy}", gpu=asked_for(experiment).gpu,
            )  # fmt: skip


def _policies(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield the experiment's precision policies, each after the key that sets it; a search may try several."""
    space: Mapping[str, Any] = experiment.sweep.space if experiment.sweep.kind else {}
    tried = [str(one) for one in listed_values(space.get(_KEY))]
    if tried:
        yield from ((f"sweep.space.{_KEY}", policy) for policy in tried)
    elif experiment.train.mixed_precision:
        yield _KEY, experiment.train.mixed_precision
