"""Check an experiment against the partition's and site's rules of `conf/cluster/`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from posixpath import normpath
from string import Formatter

from truba_runner.config.backends import TRAITS
from truba_runner.config.durations import parse_minutes, slurm_time
from truba_runner.config.partitions import asked_for, family_of
from truba_runner.config.schema import Cluster, Experiment, Partition
from truba_runner.errors import Problem, nearest
from truba_runner.language import _, marked
from truba_runner.rules.site import cores, place
from truba_runner.rules.site.here import Here
from truba_runner.rules.site.place import where
from truba_runner.rules.training import batch_problems
from truba_runner.rules.values import one_of, positive
from truba_runner.slurm.capacity import LivePartition
from truba_runner.slurm.request import job_minutes

# A step and a save may need more than any shorter time.
_LEAST_SIGNAL_SECONDS = 10
_GPU_OPTIONS = ("--gres=gpu:{gpus}", "--gpus-per-node={gpus}")


def problems(experiment: Experiment, here: Here) -> Iterator[Problem]:
    """Report every rule of the site that the experiment breaks."""
    cluster, resources = experiment.cluster, experiment.resources
    yield from _output_problems(cluster)
    yield from _option_problems(cluster)
    if resources.nodes > 1 and (traits := TRAITS.get(experiment.job.backend)) and not traits.multi_node:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            _("the {backend} backend trains on one node.", backend=experiment.job.backend),
            _("Ask for more GPUs on one node with resources.gpus, and resources.nodes=1."),
        )
    if not resources.account:
        yield Problem(_("no account"), _("Slurm charges every job to an account."), _("Set resources.account=ACCOUNT."))
    partition = cluster.partitions.get(resources.partition)
    if partition is None:
        yield Problem(
            "resources.partition=" + (resources.partition or _("(none)")),
            _("{file} has no such partition.", file=where(cluster)),
            _("A run has one partition; resources.partition=auto chooses the one where it starts first.")
            if set(resources.partition.split(",")) <= set(cluster.partitions)
            else nearest(resources.partition, cluster.partitions),
        )
        return
    if problem := place.elsewhere(cluster, resources.partition, here):
        yield problem
        here = Here()  # This machine's Slurm does not know that partition.
    asks = resources.nodes > 1 or resources.constraint
    live = (here.live() or {}).get(resources.partition) if asks else None
    facts = asked_for(experiment)
    yield from place.feature_problems(experiment, partition, live)
    yield from place.qos_problems(experiment, facts)
    yield from one_of(f"cluster.partitions.{resources.partition}.cores_rule", partition.cores_rule, cores.RULES)
    yield from _time_problems(experiment, facts)
    if partition.families and not family_of(partition, resources.constraint):
        yield from _mixed_problems(experiment, partition)
        return
    yield from _node_problems(experiment, facts, live)
    if facts.gpus_per_node:
        yield from cores.gpu_problems(experiment, facts)
        if 0 < resources.gpus <= facts.gpus_per_node:
            yield from batch_problems(experiment)
    else:
        yield from cores.cpu_problems(experiment, facts)


def _output_problems(cluster: Cluster) -> Iterator[Problem]:
    if cluster.scratch and not cluster.scratch.startswith("/"):
        rule = _("jobs start in another folder than this command, so it must be an absolute path, from / on.")
        remedy = _("Set cluster.scratch=/FOLDER, or the variable that it is read from: $TRUBA_SCRATCH on TRUBA.")
        yield Problem(f"cluster.scratch={cluster.scratch}", rule, remedy)
        return
    folder = normpath(cluster.runs_folder)
    received = f"cluster.runs_folder={cluster.runs_folder}"
    if cluster.scratch and not PurePath(folder).is_relative_to(normpath(cluster.scratch)):
        yield Problem(
            received,
            _(
                "{cluster} requires a job's output and working directory to be under {scratch} (cluster.scratch).",
                cluster=cluster.name,
                scratch=cluster.scratch,
            ),
            _("Leave it out, or choose a folder there."),
        )
    if "%" in folder:
        rule = _("Slurm reads a % in an output path as a pattern.")
        yield Problem(received, rule, _("Choose a folder without one."))


def _option_problems(cluster: Cluster) -> Iterator[Problem]:
    if cluster.gpu_option not in _GPU_OPTIONS and not re.fullmatch(r"--gres=gpu:\w+:\{gpus\}", cluster.gpu_option):
        rule = _("it must request the GPUs of each node, with one of: {options}.", options=", ".join(_GPU_OPTIONS))
        yield Problem(f"cluster.gpu_option={cluster.gpu_option}", rule, nearest(cluster.gpu_option, _GPU_OPTIONS))
    for row in cluster.refusals:
        received, remedy = f"cluster.refusals: {row.id}", _("Correct the row in {file}.", file=where(cluster))
        try:
            groups = set(re.compile(row.matches).groupindex)
        except re.error as error:
            yield Problem(received, _("`matches` is not a valid regular expression: {error}.", error=error), remedy)
            continue
        if unknown := _placeholders(row.means + row.do) - groups:
            rule = _("`matches` has no group of this name: {names}.", names=", ".join(sorted(unknown)))
            yield Problem(received, rule, remedy)


def _placeholders(text: str) -> set[str]:
    return {name for _text, name, _form, _conversion in Formatter().parse(text) if name is not None}


def _time_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources = experiment.resources
    try:
        minutes, allowed = job_minutes(resources), parse_minutes(facts.max_time)
    except ValueError:
        return  # Already reported.
    key = "resources.segment" if resources.segment else "resources.time"
    if minutes > allowed:
        remedy = marked(
            "Set resources.time={allowed} or less (shorter jobs start sooner), or resources.segment={allowed} for a "
            "chain of jobs."
        )
        if resources.segment:
            remedy = marked("Set resources.segment={allowed} or less; shorter jobs start sooner.")
        yield Problem(
            f"{key}={resources.segment or resources.time}",
            _(
                "{partition} allows {allowed} ({where}).",
                partition=resources.partition,
                allowed=slurm_time(allowed),
                where=where(experiment.cluster, "max_time"),
            ),
            _(remedy, allowed=slurm_time(allowed)),
        )
    if resources.signal_seconds is not None:
        yield from _signal_problems(resources.signal_seconds, minutes, key)


def _signal_problems(signal_seconds: int, time_minutes: int, key: str) -> Iterator[Problem]:
    """Report a signal too late to save a checkpoint in time, or too early for a run to make progress in each start."""
    received = f"resources.signal_seconds={signal_seconds}"
    if signal_seconds < _LEAST_SIGNAL_SECONDS:
        yield Problem(
            received,
            _("a run needs {least} s or more to save before its time limit.", least=_LEAST_SIGNAL_SECONDS),
            _("Leave it out: the default is 90 s, or half of the time limit where that is less."),
        )
    elif time_minutes > 0 and 2 * signal_seconds > 60 * time_minutes:
        yield Problem(
            received,
            _(
                "it may be at most half of the time limit, here {most} s: a run is stopped this long before the "
                "limit, and must make progress before that.",
                most=30 * time_minutes,
            ),
            _(
                "Set {key}={time} (minutes) or more, or resources.signal_seconds={most} or less.",
                key=key,
                time=-(-signal_seconds // 30),
                most=30 * time_minutes,
            ),
        )


def _node_problems(experiment: Experiment, facts: Partition, live: LivePartition | None) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    nodes = _nodes(facts, live, resources.constraint)
    if nodes and resources.nodes > nodes:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            _("{partition} has {nodes} nodes.", partition=name, nodes=nodes),
            _("Set resources.nodes={nodes} or less.", nodes=nodes),
        )
    most = facts.cores_per_node
    if resources.cores is not None and (resources.cores < 1 or most and resources.cores > most):
        yield Problem(
            f"resources.cores={resources.cores}",
            _("a node of {partition} has {cores} cores.", partition=name, cores=most),
            _("Leave resources.cores out: it follows from resources.gpus.")
            if facts.gpus_per_node
            else _("Ask for fewer."),
        )
    yield from positive("resources.memory_gb", resources.memory_gb)
    yield from positive("resources.memory_per_cpu_gb", resources.memory_per_cpu_gb)
    yield from positive("cluster.default_memory_per_cpu_gb", experiment.cluster.default_memory_per_cpu_gb)
    if facts.memory_gb and resources.memory_gb is not None and resources.memory_gb > facts.memory_gb:
        roomy = [
            other
            for other, partition in experiment.cluster.partitions.items()
            if partition.memory_gb >= resources.memory_gb and bool(partition.gpus_per_node) == bool(facts.gpus_per_node)
        ]
        yield Problem(
            f"resources.memory_gb={resources.memory_gb:g}",
            _("a node of {partition} has {memory:g} GB.", partition=name, memory=facts.memory_gb),
            _("Ask for less, or set resources.partition={partitions}.", partitions=_(" or ").join(roomy))
            if roomy
            else _("Ask for less."),
        )


def _nodes(facts: Partition, live: LivePartition | None, constraint: str) -> int:
    """Return how many nodes the job may get, from Slurm, else from the cluster's file; 0: unknown."""
    if live is None:
        return facts.nodes
    return live.features.get(constraint, live.nodes)


def _mixed_problems(experiment: Experiment, partition: Partition) -> Iterator[Problem]:
    """Report a request that no family of nodes can fulfil, if the job selects no family."""
    resources, known = experiment.resources, experiment.cluster.partitions
    families = {name: known[name] for name in partition.families if name in known}
    wanted = {"cores": resources.cores or 1, "gpus": resources.gpus, "memory_gb": resources.memory_gb or 0}
    room = 0
    for facts in families.values():
        limits = {"cores": facts.cores_per_node, "gpus": facts.gpus_per_node, "memory_gb": facts.memory_gb}
        # Only GPUs are certain to be absent where the file has no number.
        if all(much <= limits[key] or (key != "gpus" and not limits[key]) for key, much in wanted.items()):
            room += facts.nodes or resources.nodes
    if resources.nodes > room:
        received = " ".join(f"resources.{key}={much:g}" for key, much in wanted.items() if much)
        rule = _("no family of nodes in {partition} has enough nodes with that.", partition=resources.partition)
        yield Problem(received, rule, _("Ask for less, or set resources.constraint to one of: {names}.",
                                        names=", ".join(families)))  # fmt: skip
