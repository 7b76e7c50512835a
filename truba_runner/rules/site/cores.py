"""Check cores and GPUs against the rules of a partition. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from truba_runner.config.partitions import default_cores
from truba_runner.config.schema import Experiment, Partition
from truba_runner.errors import Problem, listed
from truba_runner.language import _, marked
from truba_runner.rules.site.place import where
from truba_runner.slurm.request import derive

RULES = ("exactly", "multiple", "at_least", "any")


def gpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    """Report broken rules of a partition whose nodes have GPUs."""
    resources, name = experiment.resources, experiment.resources.partition
    if resources.gpus == 0:
        rule = _("{partition} takes no job without a GPU.", partition=name)
        yield Problem("resources.gpus=0", rule, _("Set resources.gpus=1 or more."))
        return
    if resources.gpus > facts.gpus_per_node:
        yield Problem(
            f"resources.gpus={resources.gpus}",
            _("a node of {partition} has {gpus} GPUs.", partition=name, gpus=facts.gpus_per_node),
            _("Set resources.gpus={gpus} or less (it is counted per node).", gpus=facts.gpus_per_node),
        )
        return
    if resources.cores is None:
        return
    cores, usual, tasks = resources.cores, default_cores(facts, resources.gpus), derive(experiment).tasks_per_node
    if rule := _broken(cores, facts, resources.gpus):
        file = where(experiment.cluster, "cores_per_gpu, cores_rule")
        words = _(rule, partition=name, cores=facts.cores_per_gpu, where=file)
        yield Problem(f"resources.cores={cores}", words, _leave_cores_out(usual))
    elif cores % tasks:
        yield Problem(
            f"resources.cores={cores}",
            _(
                "the {backend} backend runs {tasks} tasks on a node, and each needs the same number of cores.",
                backend=experiment.job.backend,
                tasks=tasks,
            ),
            _leave_cores_out(usual),
        )


def _broken(cores: int, facts: Partition, gpus: int) -> str:
    """Return the message of the partition's rule on cores for GPUs that is broken; empty if none is."""
    each, least = facts.cores_per_gpu, gpus * facts.cores_per_gpu
    if not each or facts.cores_rule == "any":
        return ""
    if facts.cores_rule == "exactly" and cores != least:
        return marked("{partition} gives {cores} cores with each GPU, neither more nor fewer ({where}).")
    if facts.cores_rule == "at_least" and cores < least:
        return marked("{partition} requires at least {cores} cores per GPU ({where}).")
    if facts.cores_rule == "multiple" and (cores % each or cores < least):
        return marked("{partition} requires cores in multiples of {cores}, at least {cores} per GPU ({where}).")
    return ""


def cpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    """Report broken rules of a partition whose nodes have no GPUs."""
    resources, name = experiment.resources, experiment.resources.partition
    if resources.gpus > 0:
        have = [other for other, partition in experiment.cluster.partitions.items() if partition.gpus_per_node]
        yield Problem(
            f"resources.gpus={resources.gpus}",
            _("{partition} has no GPUs.", partition=name),
            _("Set resources.gpus=0, or choose a partition with GPUs ({names}).", names=listed(have)),
        )
    cores = resources.cores
    if cores is None or facts.cores_rule == "any":
        return
    received = f"resources.cores={cores}"
    if facts.cores_allowed and cores not in facts.cores_allowed:
        allowed = _(" or ").join(map(str, facts.cores_allowed))
        file = where(experiment.cluster, "cores_allowed")
        rule = _("{partition} takes {cores} cores on a node ({where}).", partition=name, cores=allowed, where=file)
        yield Problem(received, rule, _leave_cores_out(_nearest(cores, facts.cores_allowed)))
    elif cores % facts.cores_multiple:
        each, file = facts.cores_multiple, where(experiment.cluster, "cores_multiple")
        rule = _("{partition} takes cores in multiples of {cores} ({where}).", partition=name, cores=each, where=file)
        yield Problem(received, rule, _leave_cores_out(-(-cores // each) * each))
    elif cores < facts.min_cores:
        least, file = facts.min_cores, where(experiment.cluster, "min_cores")
        rule = _("{partition} takes {cores} cores or more ({where}).", partition=name, cores=least, where=file)
        yield Problem(received, rule, _leave_cores_out(least))


def _nearest(cores: int, allowed: list[int]) -> int:
    """Return the smallest allowed number that is enough, else the largest."""
    return min((one for one in allowed if one >= cores), default=max(allowed))


def _leave_cores_out(cores: int) -> str:
    return _("Leave resources.cores out, or set resources.cores={cores}.", cores=cores)
