"""The facts of a partition that are in force, and its nodes' local scratch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from truba_runner.config.schema import Cluster, Experiment, Partition


def facts_of(cluster: Cluster, name: str, constraint: str) -> Partition:
    """A partition's own facts; for one that mixes nodes, those of the family that the constraint chooses."""
    partition = cluster.partitions.get(name, Partition())
    if constraint in partition.families and constraint in cluster.partitions:
        family = cluster.partitions[constraint]
        limits = [count for count in (partition.nodes, family.nodes) if count]
        return replace(family, nodes=min(limits, default=0), max_time=partition.max_time)
    return partition


def scratch_of(experiment: Experiment) -> Path:
    """The folder on the own disk of each of its partition's nodes: `local_scratch`, with variables of the node."""
    resources = experiment.resources
    return Path(
        os.path.expandvars(facts_of(experiment.cluster, resources.partition, resources.constraint).local_scratch)
    )
