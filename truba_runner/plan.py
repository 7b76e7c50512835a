"""What sbatch will be told, worked out from an experiment and the cluster's rules, or every rule that it breaks.

Pure: no disk, no network, no scheduler. The rules are data in `conf/cluster/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from posixpath import normpath

from truba_runner.backends import TRAITS
from truba_runner.config import Cluster, Experiment, Partition
from truba_runner.durations import FORMS, parse_minutes, slurm_time
from truba_runner.environment import problems as environment_problems
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.request import Request, derive, facts_of, job_minutes
from truba_runner.search.space import problems as search_problems
from truba_runner.search.space import warnings as search_warnings
from truba_runner.training_rules import batch_problems, problems

# Less than a step and a save may need.
_LEAST_SIGNAL_SECONDS = 10
# With a shorter limit most of a start may go by with starting.
_SHORT_MINUTES = 5


@dataclass(frozen=True)
class Plan:
    """A request that breaks no rule, and what its user should know all the same."""

    request: Request
    warnings: tuple[str, ...]


def plan(experiment: Experiment, login_node: str = "") -> Plan:
    """Checks an experiment against its cluster's rules.

    Raises:
        Refused: with every rule that is broken, each with its remedy.
    """
    broken = [*_experiment_problems(experiment)]
    if experiment.cluster.scheduler == "slurm":
        broken += _slurm_problems(experiment)
    else:
        broken += _local_problems(experiment)
    if broken:
        raise Refused(*broken)
    request = derive(experiment)
    return Plan(request, tuple(_warnings(experiment, request, login_node)))


def _experiment_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong on any cluster."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", experiment.name):
        yield Problem(
            f"name={experiment.name}",
            "a run's directory and job are named after it: letters, digits, '_', '.' and '-' only.",
            "Choose another name.",
        )
    if experiment.job.backend not in TRAITS:
        yield Problem(
            f"job.backend={experiment.job.backend}",
            "there is no such backend in truba_runner/backends/.",
            nearest(experiment.job.backend, TRAITS),
        )
    sources = experiment.data.sources
    if sources and experiment.data.name not in sources:
        yield Problem(
            f"data.name={experiment.data.name}",
            "the experiment knows no such data (data.sources).",
            nearest(experiment.data.name, sources),
        )
    yield from _at_least(experiment.resources.nodes, 1, "resources.nodes")
    yield from _at_least(experiment.resources.gpus, 0, "resources.gpus")
    yield from _at_least(experiment.train.epochs, 1, "train.epochs")
    if experiment.train.batch_size is not None:
        yield from _at_least(experiment.train.batch_size, 1, "train.batch_size")
    yield from _at_least(experiment.train.seed, 0, "train.seed")
    yield from problems(experiment)
    yield from search_problems(experiment)
    yield from environment_problems(experiment)
    try:
        time_minutes = parse_minutes(experiment.resources.time)
    except ValueError as error:
        yield Problem(f"resources.time={experiment.resources.time}", f"{error}.", f"Write it as {FORMS}.")
    else:
        yield from _at_least(time_minutes, 1, "resources.time")
        yield from _segment_problems(experiment, time_minutes)


def _segment_problems(experiment: Experiment, time_minutes: int) -> Iterator[Problem]:
    resources = experiment.resources
    if not resources.segment:
        return
    received = f"resources.segment={resources.segment}"
    try:
        minutes = parse_minutes(resources.segment)
    except ValueError as error:
        yield Problem(received, f"{error}.", f"Write it as {FORMS}.")
        return
    if minutes < _SHORT_MINUTES:
        rule = f"a job of less than {_SHORT_MINUTES} minutes starts, saves and comes no further."
        yield Problem(received, rule, f"Set resources.segment={_SHORT_MINUTES} (minutes) or more.")
    elif -(-time_minutes // minutes) > resources.max_requeues + 1:
        rule = f"{resources.time} of them are more jobs than resources.max_requeues={resources.max_requeues} allows."
        yield Problem(received, rule, "Make the segment longer, or allow more requeues.")


def _at_least(value: int, least: int, key: str) -> Iterator[Problem]:
    if value < least:
        yield Problem(f"{key}={value}", f"it must be {least} or more.", f"Set {key}={max(least, 1)}.")


def _local_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.resources.nodes > 1:
        yield Problem(
            f"resources.nodes={experiment.resources.nodes}",
            "a local run has this one machine.",
            "Leave resources.nodes out, or choose a cluster with cluster=NAME.",
        )
    traits = TRAITS.get(experiment.job.backend)
    if traits and traits.task_per_gpu and experiment.resources.gpus > 1:
        yield Problem(
            f"resources.gpus={experiment.resources.gpus}",
            f"the {experiment.job.backend} backend runs a process a GPU, and a local run is one process.",
            "Set resources.gpus=1, or choose a cluster with cluster=NAME.",
        )
    yield from _batch_problems(experiment)


def _batch_problems(experiment: Experiment) -> Iterator[Problem]:
    yield from batch_problems(experiment, max(1, experiment.resources.gpus) * experiment.resources.nodes)


def _slurm_problems(experiment: Experiment) -> Iterator[Problem]:
    """Every rule of the site that the experiment breaks."""
    cluster, resources = experiment.cluster, experiment.resources
    yield from _output_problems(cluster)
    if resources.nodes > 1 and (traits := TRAITS.get(experiment.job.backend)) and not traits.multi_node:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            f"the {experiment.job.backend} backend trains on one node.",
            "Ask for more GPUs on one node with resources.gpus, and resources.nodes=1.",
        )
    if not resources.account:
        yield Problem("no account", "every job is charged to one.", "Set resources.account=ACCOUNT.")
    partition = cluster.partitions.get(resources.partition)
    if partition is None:
        yield Problem(
            f"resources.partition={resources.partition or '(none)'}",
            f"{_where(cluster)} knows no such partition.",
            nearest(resources.partition, cluster.partitions),
        )
        return
    yield from _constraint_problems(experiment, partition)
    facts = facts_of(cluster, resources.partition, resources.constraint)
    yield from _time_problems(experiment, facts)
    if partition.families and resources.constraint not in partition.families:
        return  # What a node holds is not known before the family is.
    yield from _node_problems(experiment, facts)
    if facts.gpus_per_node:
        yield from _gpu_problems(experiment, facts)
    else:
        yield from _cpu_problems(experiment, facts)


def _where(cluster: Cluster, key: str = "") -> str:
    return f"conf/cluster/{cluster.name}.yaml" + (f" ({key})" if key else "")


def _output_problems(cluster: Cluster) -> Iterator[Problem]:
    folder = normpath(cluster.runs_folder)
    received = f"cluster.runs_folder={cluster.runs_folder}"
    if cluster.scratch and not PurePath(folder).is_relative_to(normpath(cluster.scratch)):
        yield Problem(
            received,
            f"{cluster.name} wants a job's output and working directory under {cluster.scratch} (cluster.scratch).",
            "Leave it out, or choose a folder there.",
        )
    if "%" in folder:
        yield Problem(received, "Slurm reads a % in an output path as a pattern.", "Choose a folder without one.")


def _constraint_problems(experiment: Experiment, partition: Partition) -> Iterator[Problem]:
    resources = experiment.resources
    valid = [*partition.families, *partition.features]
    where = _where(experiment.cluster, f"partitions.{resources.partition}.features")
    choice = " or ".join(f"resources.constraint={feature}" for feature in valid)
    if not resources.constraint:
        if partition.families:
            yield Problem(
                f"resources.partition={resources.partition}",
                "it mixes node families, and a job must choose one.",
                f"Set {choice}.",
            )
        elif partition.feature_required:
            yield Problem(
                f"resources.partition={resources.partition}",
                f"a job must say which of its GPUs it wants ({where}).",
                f"Set {choice}.",
            )
    elif resources.constraint not in valid:
        yield Problem(
            f"resources.constraint={resources.constraint}",
            f"no node of {resources.partition} has this feature ({where}).",
            nearest(resources.constraint, valid),
        )


def _time_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources = experiment.resources
    try:
        asked, allowed = job_minutes(resources), parse_minutes(facts.max_time)
    except ValueError:
        return  # Told of already.
    key = "resources.segment" if resources.segment else "resources.time"
    if asked > allowed:
        chain = "" if resources.segment else f"; or resources.segment={slurm_time(allowed)} for a chain of jobs"
        yield Problem(
            f"{key}={resources.segment or resources.time}",
            f"{resources.partition} allows {slurm_time(allowed)} ({_where(experiment.cluster, 'max_time')}).",
            f"Set {key}={slurm_time(allowed)} or less, the shorter, the sooner a job starts{chain}.",
        )
    if resources.signal_seconds is not None:
        yield from _signal_problems(resources.signal_seconds, asked, key)


def _signal_problems(signal_seconds: int, time_minutes: int, key: str) -> Iterator[Problem]:
    """Whether Slurm's signal comes early enough to save, and late enough for a run to come further at each start."""
    received = f"resources.signal_seconds={signal_seconds}"
    if signal_seconds < _LEAST_SIGNAL_SECONDS:
        yield Problem(
            received,
            f"a run needs {_LEAST_SIGNAL_SECONDS} s or more to save before its time limit.",
            "Leave it out: 90 s, or half of a shorter limit.",
        )
    elif time_minutes > 0 and 2 * signal_seconds > 60 * time_minutes:
        yield Problem(
            received,
            f"it may be half of the time limit at most, here {30 * time_minutes} s: a run is stopped so long before "
            "the limit, and has to come further until then.",
            f"Set {key}={-(-signal_seconds // 30)} (minutes) or more, or resources.signal_seconds="
            f"{30 * time_minutes} or less.",
        )


def _node_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if facts.nodes and resources.nodes > facts.nodes:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            f"{name} has {facts.nodes}.",
            f"Set resources.nodes={facts.nodes} or less.",
        )
    if resources.cores is not None and not 1 <= resources.cores <= facts.cores_per_node:
        yield Problem(
            f"resources.cores={resources.cores}",
            f"a node of {name} has {facts.cores_per_node} cores.",
            "Leave resources.cores out: it follows from resources.gpus." if facts.gpus_per_node else "Ask for fewer.",
        )
    if resources.memory_gb is not None and resources.memory_gb <= 0:
        yield Problem(f"resources.memory_gb={resources.memory_gb}", "it must be positive.", "Leave it out.")
    if facts.memory_gb and resources.memory_gb is not None and resources.memory_gb > facts.memory_gb:
        roomy = [
            other
            for other, partition in experiment.cluster.partitions.items()
            if partition.memory_gb >= resources.memory_gb and bool(partition.gpus_per_node) == bool(facts.gpus_per_node)
        ]
        yield Problem(
            f"resources.memory_gb={resources.memory_gb:g}",
            f"a node of {name} has {facts.memory_gb:g} GB.",
            f"Ask for less, or set resources.partition={' or '.join(roomy)}." if roomy else "Ask for less.",
        )


def _gpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if resources.gpus == 0:
        yield Problem("resources.gpus=0", f"{name} takes no job without a GPU.", "Set resources.gpus=1 or more.")
        return
    if resources.gpus > facts.gpus_per_node:
        yield Problem(
            f"resources.gpus={resources.gpus}",
            f"a node of {name} has {facts.gpus_per_node} GPUs.",
            f"Set resources.gpus={facts.gpus_per_node} or less (it is counted per node).",
        )
        return
    yield from _batch_problems(experiment)
    cores, least = resources.cores, resources.gpus * facts.cores_per_gpu
    if cores is not None and (cores % facts.cores_per_gpu or cores < least):
        yield Problem(
            f"resources.cores={cores}",
            f"{name} wants cores in multiples of {facts.cores_per_gpu} and at least {facts.cores_per_gpu} per GPU "
            f"({_where(experiment.cluster, 'cores_per_gpu')}).",
            f"Leave resources.cores out, or set resources.cores={least}.",
        )
    elif cores is not None and cores % derive(experiment).tasks_per_node:
        tasks = derive(experiment).tasks_per_node
        yield Problem(
            f"resources.cores={cores}",
            f"the {experiment.job.backend} backend runs {tasks} tasks on a node, and each has as many cores.",
            f"Leave resources.cores out, or set resources.cores={least}.",
        )


def _cpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if resources.gpus > 0:
        yield Problem(
            f"resources.gpus={resources.gpus}",
            f"{name} has no GPUs.",
            "Set resources.gpus=0, or choose a partition with GPUs (their names end in -cuda).",
        )
    if resources.cores is not None and resources.cores < facts.min_cores:
        yield Problem(
            f"resources.cores={resources.cores}",
            f"{name} takes {facts.min_cores} cores or more ({_where(experiment.cluster, 'min_cores')}).",
            f"Leave resources.cores out, or set resources.cores={facts.min_cores}.",
        )


def _warnings(experiment: Experiment, request: Request, login_node: str) -> Iterator[str]:
    cluster, partition = experiment.cluster, experiment.cluster.partitions.get(request.partition)
    yield from search_warnings(experiment)
    if request.mail_type and cluster.scheduler != "slurm":
        yield "resources.mail_type and mail_user: Slurm sends the mails, and this run does not go through it."
    if cluster.scheduler == "slurm" and request.time_minutes < _SHORT_MINUTES:
        yield (
            f"resources.time={experiment.resources.time} is short: a start first imports the framework and reads its "
            f"data, and is told to save {request.signal_seconds} s before the limit, or up to 30 s earlier. A run that "
            f"comes no further in three starts is given up. Set resources.time={_SHORT_MINUTES} (minutes) or more."
        )
    if cluster.account_cores and request.total_cores > cluster.account_cores:
        yield (
            f"{request.total_cores} cores are more than the {cluster.account_cores} that an account may use at once "
            "(cluster.account_cores): the job may wait for ever with AssocGrpCpuLimit."
        )
    if partition is None:
        return
    if partition.access:
        yield f"{request.partition} is open to {partition.access}."
    if partition.login_nodes and login_node and login_node not in partition.login_nodes:
        yield f"{request.partition} takes jobs from {' and '.join(partition.login_nodes)}; this is {login_node}."
