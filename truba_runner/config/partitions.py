"""The effective facts of a partition: those of the cluster's file, and those that Slurm itself reports."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from truba_runner.config.schema import Cluster, Experiment, Partition


def features_in(constraint: str) -> list[str]:
    """Return the features that a constraint such as `akya-cuda&V100` or `[H100*2|H200]` names."""
    return [word for word in re.split(r"[&|,\[\]()\s]+|\*\d+", constraint) if word]


def family_of(partition: Partition, constraint: str) -> str:
    """Return the family of nodes that a constraint selects in a mixed partition; empty if none, or several."""
    named = [feature for feature in features_in(constraint) if feature in partition.families]
    return named[0] if len(named) == 1 else ""


def facts_of(cluster: Cluster, name: str, constraint: str) -> Partition:
    """Return a partition's facts; if it mixes node families, those of the family that the constraint selects."""
    partition = cluster.partitions.get(name, Partition())
    family = cluster.partitions.get(family_of(partition, constraint))
    if family is None:
        return partition
    limits = [count for count in (partition.nodes, family.nodes) if count]
    return replace(
        family,
        nodes=min(limits, default=0),
        max_time=partition.max_time,
        cores_rule=partition.cores_rule,
        qos=partition.qos,
    )


def asked_for(experiment: Experiment) -> Partition:
    """Return the facts of the partition that an experiment asks for."""
    return facts_of(experiment.cluster, experiment.resources.partition, experiment.resources.constraint)


def gpu_models(facts: Partition, constraint: str) -> list[str]:
    """Return the GPU models of the partition that the constraint allows; there may be several."""
    models = facts.gpu.split("/") if facts.gpu else []
    return [model for model in models if model in features_in(constraint)] or models


def default_cores(facts: Partition, gpus: int) -> int:
    """Return the number of cores on a node for a job that does not request one."""
    if facts.gpus_per_node:
        return gpus * (facts.cores_per_gpu or 1)
    return min(facts.cores_allowed, default=max(facts.min_cores, facts.cores_multiple))


def scratch_of(experiment: Experiment) -> Path:
    """Return the partition's `local_scratch`, the folder on a node's local disk; expands environment variables."""
    return Path(os.path.expandvars(asked_for(experiment).local_scratch))
