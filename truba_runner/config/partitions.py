"""The effective facts of a partition, and its nodes' local scratch folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from truba_runner.config.schema import Cluster, Experiment, Partition


def facts_of(cluster: Cluster, name: str, constraint: str) -> Partition:
    """Return a partition's facts; if it mixes node families, those of the family that the constraint selects."""
    partition = cluster.partitions.get(name, Partition())
    if constraint in partition.families and constraint in cluster.partitions:
        family = cluster.partitions[constraint]
        limits = [count for count in (partition.nodes, family.nodes) if count]
        return replace(family, nodes=min(limits, default=0), max_time=partition.max_time)
    return partition


def asked_for(experiment: Experiment) -> Partition:
    """Return the facts of the partition that an experiment asks for."""
    return facts_of(experiment.cluster, experiment.resources.partition, experiment.resources.constraint)


def scratch_of(experiment: Experiment) -> Path:
    """Return the partition's `local_scratch`, the folder on a node's local disk; expands environment variables."""
    return Path(os.path.expandvars(asked_for(experiment).local_scratch))
