"""Check options of sbatch that `resources` sets: nodes by name, memory per core, QOS, further options. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem, nearest
from truba_runner.language import _
from truba_runner.rules.sbatch.options import asks_for_gpus, reserved, why_not
from truba_runner.slurm import hostlist
from truba_runner.slurm.request import derive, long_option, node_list

_MEMORY = ("any", "per_cpu", "none")


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report what contradicts another key, a rule of the site, or itself."""
    yield from _node_problems(experiment)
    yield from _memory_problems(experiment)
    for key in ("qos", "reservation"):
        value = getattr(experiment.resources, key)
        if value and not re.fullmatch(r"[^\s\x00-\x1f\x7f'\"]+", value):
            rule = _("it must be a name without blanks or quotes.")
            yield Problem(f"resources.{key}={value}", rule, _("Write it as Slurm lists it."))
    for key, value in experiment.resources.sbatch.items():
        yield from _option_problems(experiment, str(key), value)
    yield from _requeue_problems(experiment)


def _node_problems(experiment: Experiment) -> Iterator[Problem]:
    named: dict[str, list[str]] = {}
    for key in ("exclude", "nodelist"):
        text = node_list(getattr(experiment.resources, key))
        try:
            names = hostlist.expand(text) if text else []
        except ValueError as error:
            yield Problem(f"resources.{key}={text}", f"{error}.", _nodes_example(key))
            continue
        if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]:
            rule = _("{name!r} is not the name of a node.", name=wrong[0])
            yield Problem(f"resources.{key}={text}", rule, _nodes_example(key))
        named[key] = names
    both = [name for name in named.get("nodelist", []) if name in named.get("exclude", [])]
    if both:
        rule = _("resources.exclude keeps the job from {node}, which resources.nodelist asks for.", node=both[0])
        yield Problem(_nodelist(experiment), rule, _("Leave out one of them."))
    count, nodes = len(set(named.get("nodelist", []))), experiment.resources.nodes
    if count > nodes >= 1:
        yield Problem(
            _nodelist(experiment),
            _("a job gets all of these {count} nodes, and resources.nodes={nodes}.", count=count, nodes=nodes),
            _(
                "Set resources.nodes={count}, or name as many nodes as the job has; nodes that it must not get go into "
                "resources.exclude.",
                count=count,
            ),
        )


def _nodelist(experiment: Experiment) -> str:
    return f"resources.nodelist={node_list(experiment.resources.nodelist)}"


def _nodes_example(key: str) -> str:
    return _("Write nodes as Slurm does: resources.{key}=akya3, or resources.{key}='akya[3-5],akya9'.", key=key)


def _memory_problems(experiment: Experiment) -> Iterator[Problem]:
    cluster, resources = experiment.cluster, experiment.resources
    per_core = resources.memory_per_cpu_gb
    if cluster.memory not in _MEMORY:
        yield Problem(
            f"cluster.memory={cluster.memory}", _("there is no such choice."), nearest(cluster.memory, _MEMORY)
        )
    if cluster.memory == "none" and cluster.default_memory_per_cpu_gb is not None:
        rule = _("cluster.memory=none: no job may ask for memory there.")
        received = f"cluster.default_memory_per_cpu_gb={cluster.default_memory_per_cpu_gb:g}"
        yield Problem(received, rule, _("Leave out one of them."))
    keys = [key for key in ("memory_gb", "memory_per_cpu_gb") if getattr(resources, key) is not None]
    if len(keys) == 2:
        rule = _("resources.memory_gb is set too, and a job asks for memory in one way.")
        yield Problem(f"resources.memory_per_cpu_gb={per_core:g}", rule, _("Leave out one of them."))
        return
    if keys and cluster.memory == "none":
        yield Problem(
            f"resources.{keys[0]}={getattr(resources, keys[0]):g}",
            _(
                "{cluster} takes no job that asks for memory: it follows from the cores (conf/cluster/{cluster}.yaml, "
                "memory).",
                cluster=cluster.name,
            ),
            _("Leave it out; for more memory, ask for more cores (resources.cores)."),
        )
    elif per_core is not None and 0 < per_core < math.inf:
        yield from _per_core_problems(experiment, per_core)


def _per_core_problems(experiment: Experiment, per_core: float) -> Iterator[Problem]:
    has, cores = asked_for(experiment).memory_gb, derive(experiment).cores
    if has and per_core * cores > has:
        yield Problem(
            f"resources.memory_per_cpu_gb={per_core:g}",
            _(
                "with {cores} cores that is {asked:g} GB, and a node of {partition} has {has:g} GB.",
                cores=cores,
                asked=per_core * cores,
                partition=experiment.resources.partition,
                has=has,
            ),
            _("Set resources.memory_per_cpu_gb={most:g} or less.", most=int(has / cores * 100) / 100),
        )


def _option_problems(experiment: Experiment, key: str, value: Any) -> Iterator[Problem]:
    """Report an entry of `resources.sbatch`; null and false leave an option out."""
    received = f"resources.sbatch.{key}={value}"
    option = long_option(key)
    if value is None or value is False:
        return
    if not re.fullmatch(r"[a-z][a-z0-9-]+", option):
        rule = _("it is not the long name of an option of sbatch.")
        yield Problem(received, rule, _("Write it as after the two dashes: nice, licenses, gpu-freq."))
    elif option == "mem" and _asks_for_all_memory(experiment, value):
        return
    elif taken := reserved(key):
        yield Problem(received, *why_not(taken))
    elif asks_for_gpus(option, value):
        yield Problem(received, *why_not("gpus"))
    elif not isinstance(value, (str, int, float)) or re.search(r"[\x00-\x1f\x7f]", str(value)):
        yield Problem(received, _("an option has one value, on one line."), _("Write it as sbatch takes it."))


def _asks_for_all_memory(experiment: Experiment, value: Any) -> bool:
    """Return whether the option is `--mem=0`, all memory of a node, for which there is no number of gigabytes."""
    resources = experiment.resources
    alone = resources.memory_gb is None and resources.memory_per_cpu_gb is None
    return str(value) == "0" and alone and experiment.cluster.memory == "any"


def _requeue_problems(experiment: Experiment) -> Iterator[Problem]:
    cluster, segment = experiment.cluster, experiment.resources.segment
    if segment and not cluster.requeue:
        yield Problem(
            f"resources.segment={segment}",
            _(
                "a chain is one job that goes back to the queue, which {cluster} does not allow "
                "(conf/cluster/{cluster}.yaml, requeue).",
                cluster=cluster.name,
            ),
            _("Leave it out, and set resources.time to the time of one job; the same command resumes the run."),
        )
