"""Check a job's constraint, QOS and login node against the rules of its partition. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from truba_runner.config.partitions import family_of, features_in, gpu_models
from truba_runner.config.schema import Cluster, Experiment, Partition
from truba_runner.errors import Problem, nearest
from truba_runner.language import _
from truba_runner.rules.site.here import Here
from truba_runner.slurm.capacity import LivePartition


def where(cluster: Cluster, key: str = "") -> str:
    """Return the cluster's file, and the key in it that sets a rule."""
    return f"conf/cluster/{cluster.name}.yaml" + (f" ({key})" if key else "")


def elsewhere(cluster: Cluster, name: str, here: Here) -> Problem | None:
    """Return why this machine cannot submit jobs to a partition, with the command that can; None if it can."""
    partition = cluster.partitions[name]
    if not here.host or here.host in partition.login_nodes:
        return None
    received = f"resources.partition={name}"
    if partition.login_nodes and here.host in _login_nodes(cluster):
        return Problem(received, _accepts_only_from(name, partition, here), _go(partition.login_nodes, here))
    live = here.live()
    if live is None or name in live:
        return None
    rule = _("the Slurm of this machine, {host}, has no such partition.", host=here.host)
    return Problem(received, rule, _go(partition.login_nodes, here) if partition.login_nodes else nearest(name, live))


def _login_nodes(cluster: Cluster) -> set[str]:
    return {host for partition in cluster.partitions.values() for host in partition.login_nodes}


def _accepts_only_from(name: str, partition: Partition, here: Here) -> str:
    hosts = _(" or ").join(partition.login_nodes)
    if not partition.slurm_cluster:
        return _("{partition} accepts jobs only from {hosts}; this is {here}.", partition=name, hosts=hosts,
                 here=here.host)  # fmt: skip
    return _(
        "{partition} belongs to the Slurm cluster {cluster}, which accepts jobs only from {hosts}; this is {here}.",
        partition=name,
        cluster=partition.slurm_cluster,
        hosts=hosts,
        here=here.host,
    )


def _go(hosts: Sequence[str], here: Here) -> str:
    line = f"ssh -t {hosts[0]} {shlex.quote(here.command)}" if here.command else f"ssh {hosts[0]}"
    return _("Type: {command}", command=line)


def feature_problems(experiment: Experiment, partition: Partition, live: LivePartition | None) -> Iterator[Problem]:
    """Report a constraint that is required but missing, and features that no node has according to Slurm."""
    resources = experiment.resources
    named, received = features_in(resources.constraint), f"resources.constraint={resources.constraint}"
    without = f"resources.partition={resources.partition}"
    if partition.families and not family_of(partition, resources.constraint) and resources.cores is None:
        rule = _("it mixes node families, and how many cores a job gets depends on the family.")
        remedy = _("{choose} Or set resources.cores to any number.", choose=_choose(partition.families))
        yield Problem(received if named else without, rule, remedy)
    elif partition.feature_required and not set(named) & set(partition.features):
        file = where(experiment.cluster, f"partitions.{resources.partition}.feature_required")
        rule = _("a job must choose one of its kinds of nodes ({where}).", where=file)
        yield Problem(received if named else without, rule, _choose(partition.features))
    if live is None:
        return
    for feature in named:
        if feature not in live.features:
            rule = _("according to Slurm (sinfo), no node of {partition} has the feature {feature}.",
                     partition=resources.partition, feature=feature)  # fmt: skip
            yield Problem(received, rule, nearest(feature, live.features))


def _choose(features: Sequence[str]) -> str:
    return _("Set {choice}.", choice=_(" or ").join(f"resources.constraint={feature}" for feature in features))


def qos_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    """Report a QOS that the partition does not accept."""
    resources = experiment.resources
    if resources.qos and facts.qos and resources.qos not in facts.qos:
        file = where(experiment.cluster, f"partitions.{resources.partition}.qos")
        rule = _("{partition} takes no such QOS ({where}).", partition=resources.partition, where=file)
        yield Problem(f"resources.qos={resources.qos}", rule, nearest(resources.qos, facts.qos))


def warnings(experiment: Experiment, facts: Partition, here: Here) -> Iterator[str]:
    """Warn of restricted access, a login node that may be the wrong one, unknown features, and mixed GPU models."""
    cluster, resources = experiment.cluster, experiment.resources
    partition = cluster.partitions[resources.partition]
    if partition.access:
        yield _("{partition} is open to {access}.", partition=resources.partition, access=_(partition.access))
    hosts = partition.login_nodes
    if here.host and hosts and here.host not in _login_nodes(cluster) and here.live() is None:
        yield _accepts_only_from(resources.partition, partition, here)
    yield from _feature_warnings(experiment, partition, here)
    models = gpu_models(facts, resources.constraint)
    if len(models) > 1:
        yield _(
            "{partition} has nodes with {models}, and the job may get any of them, and another one after a requeue; "
            "the weights are then no longer equal bit for bit. {choose}",
            partition=resources.partition,
            models=_(" and ").join(models),
            choose=_choose([model for model in models if model in partition.features]),
        )


def _feature_warnings(experiment: Experiment, partition: Partition, here: Here) -> Iterator[str]:
    """Warn of features that the file does not list, if Slurm cannot be asked for them."""
    resources = experiment.resources
    listed = [*partition.families, *partition.features]
    unlisted = [feature for feature in features_in(resources.constraint) if feature not in listed]
    if not unlisted or here.live() is not None:
        return
    for feature in unlisted:
        yield _(
            "resources.constraint={constraint}: {file} lists no feature {feature} for {partition}, and Slurm could not "
            "be asked; it refuses the job if no node has it. {nearest}",
            constraint=resources.constraint,
            file=where(experiment.cluster, f"partitions.{resources.partition}.features"),
            feature=feature,
            partition=resources.partition,
            nearest=nearest(feature, listed),
        )
