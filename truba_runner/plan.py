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
from truba_runner.language import _, marked
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
            _("a run's directory and job are named after it: letters, digits, '_', '.' and '-' only."),
            _("Choose another name."),
        )
    if experiment.job.backend not in TRAITS:
        yield Problem(
            f"job.backend={experiment.job.backend}",
            _("there is no such backend in truba_runner/backends/."),
            nearest(experiment.job.backend, TRAITS),
        )
    sources = experiment.data.sources
    if sources and experiment.data.name not in sources:
        yield Problem(
            f"data.name={experiment.data.name}",
            _("the experiment knows no such data (data.sources)."),
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
        yield Problem(f"resources.time={experiment.resources.time}", f"{error}.", _forms())
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
        yield Problem(received, f"{error}.", _forms())
        return
    if minutes < _SHORT_MINUTES:
        yield Problem(
            received,
            _("a job of less than {least} minutes starts, saves and comes no further.", least=_SHORT_MINUTES),
            _("Set resources.segment={least} (minutes) or more.", least=_SHORT_MINUTES),
        )
    elif -(-time_minutes // minutes) > resources.max_requeues + 1:
        yield Problem(
            received,
            _(
                "{time} of them are more jobs than resources.max_requeues={most} allows.",
                time=resources.time,
                most=resources.max_requeues,
            ),
            _("Make the segment longer, or allow more requeues."),
        )


def _forms() -> str:
    return _("Write it as {forms}.", forms=_(FORMS))


def _at_least(value: int, least: int, key: str) -> Iterator[Problem]:
    if value < least:
        yield Problem(
            f"{key}={value}",
            _("it must be {least} or more.", least=least),
            _("Set {key}={value}.", key=key, value=max(least, 1)),
        )


def _local_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.resources.nodes > 1:
        yield Problem(
            f"resources.nodes={experiment.resources.nodes}",
            _("a local run has this one machine."),
            _("Leave resources.nodes out, or choose a cluster with cluster=NAME."),
        )
    traits = TRAITS.get(experiment.job.backend)
    if traits and traits.task_per_gpu and experiment.resources.gpus > 1:
        yield Problem(
            f"resources.gpus={experiment.resources.gpus}",
            _(
                "the {backend} backend runs a process a GPU, and a local run is one process.",
                backend=experiment.job.backend,
            ),
            _("Set resources.gpus=1, or choose a cluster with cluster=NAME."),
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
            _("the {backend} backend trains on one node.", backend=experiment.job.backend),
            _("Ask for more GPUs on one node with resources.gpus, and resources.nodes=1."),
        )
    if not resources.account:
        yield Problem(_("no account"), _("every job is charged to one."), _("Set resources.account=ACCOUNT."))
    partition = cluster.partitions.get(resources.partition)
    if partition is None:
        yield Problem(
            "resources.partition=" + (resources.partition or _("(none)")),
            _("{file} knows no such partition.", file=_where(cluster)),
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
            _(
                "{cluster} wants a job's output and working directory under {scratch} (cluster.scratch).",
                cluster=cluster.name,
                scratch=cluster.scratch,
            ),
            _("Leave it out, or choose a folder there."),
        )
    if "%" in folder:
        rule = _("Slurm reads a % in an output path as a pattern.")
        yield Problem(received, rule, _("Choose a folder without one."))


def _constraint_problems(experiment: Experiment, partition: Partition) -> Iterator[Problem]:
    resources = experiment.resources
    valid = [*partition.families, *partition.features]
    where = _where(experiment.cluster, f"partitions.{resources.partition}.features")
    choose = _("Set {choice}.", choice=_(" or ").join(f"resources.constraint={feature}" for feature in valid))
    if not resources.constraint:
        if partition.families:
            yield Problem(
                f"resources.partition={resources.partition}",
                _("it mixes node families, and a job must choose one."),
                choose,
            )
        elif partition.feature_required:
            yield Problem(
                f"resources.partition={resources.partition}",
                _("a job must say which of its GPUs it wants ({where}).", where=where),
                choose,
            )
    elif resources.constraint not in valid:
        yield Problem(
            f"resources.constraint={resources.constraint}",
            _("no node of {partition} has this feature ({where}).", partition=resources.partition, where=where),
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
        remedy = marked(
            "Set resources.time={allowed} or less, the shorter, the sooner a job starts; or "
            "resources.segment={allowed} for a chain of jobs."
        )
        if resources.segment:
            remedy = marked("Set resources.segment={allowed} or less, the shorter, the sooner a job starts.")
        yield Problem(
            f"{key}={resources.segment or resources.time}",
            _(
                "{partition} allows {allowed} ({where}).",
                partition=resources.partition,
                allowed=slurm_time(allowed),
                where=_where(experiment.cluster, "max_time"),
            ),
            _(remedy, allowed=slurm_time(allowed)),
        )
    if resources.signal_seconds is not None:
        yield from _signal_problems(resources.signal_seconds, asked, key)


def _signal_problems(signal_seconds: int, time_minutes: int, key: str) -> Iterator[Problem]:
    """Whether Slurm's signal comes early enough to save, and late enough for a run to come further at each start."""
    received = f"resources.signal_seconds={signal_seconds}"
    if signal_seconds < _LEAST_SIGNAL_SECONDS:
        yield Problem(
            received,
            _("a run needs {least} s or more to save before its time limit.", least=_LEAST_SIGNAL_SECONDS),
            _("Leave it out: 90 s, or half of a shorter limit."),
        )
    elif time_minutes > 0 and 2 * signal_seconds > 60 * time_minutes:
        yield Problem(
            received,
            _(
                "it may be half of the time limit at most, here {most} s: a run is stopped so long before the limit, "
                "and has to come further until then.",
                most=30 * time_minutes,
            ),
            _(
                "Set {key}={time} (minutes) or more, or resources.signal_seconds={most} or less.",
                key=key,
                time=-(-signal_seconds // 30),
                most=30 * time_minutes,
            ),
        )


def _node_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if facts.nodes and resources.nodes > facts.nodes:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            _("{partition} has {nodes}.", partition=name, nodes=facts.nodes),
            _("Set resources.nodes={nodes} or less.", nodes=facts.nodes),
        )
    if resources.cores is not None and not 1 <= resources.cores <= facts.cores_per_node:
        yield Problem(
            f"resources.cores={resources.cores}",
            _("a node of {partition} has {cores} cores.", partition=name, cores=facts.cores_per_node),
            _("Leave resources.cores out: it follows from resources.gpus.")
            if facts.gpus_per_node
            else _("Ask for fewer."),
        )
    if resources.memory_gb is not None and resources.memory_gb <= 0:
        yield Problem(f"resources.memory_gb={resources.memory_gb}", _("it must be positive."), _("Leave it out."))
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


def _gpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
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
    yield from _batch_problems(experiment)
    cores, least = resources.cores, resources.gpus * facts.cores_per_gpu
    if cores is not None and (cores % facts.cores_per_gpu or cores < least):
        yield Problem(
            f"resources.cores={cores}",
            _(
                "{partition} wants cores in multiples of {cores} and at least {cores} per GPU ({where}).",
                partition=name,
                cores=facts.cores_per_gpu,
                where=_where(experiment.cluster, "cores_per_gpu"),
            ),
            _leave_cores_out(least),
        )
    elif cores is not None and cores % derive(experiment).tasks_per_node:
        tasks = derive(experiment).tasks_per_node
        yield Problem(
            f"resources.cores={cores}",
            _(
                "the {backend} backend runs {tasks} tasks on a node, and each has as many cores.",
                backend=experiment.job.backend,
                tasks=tasks,
            ),
            _leave_cores_out(least),
        )


def _leave_cores_out(cores: int) -> str:
    return _("Leave resources.cores out, or set resources.cores={cores}.", cores=cores)


def _cpu_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if resources.gpus > 0:
        yield Problem(
            f"resources.gpus={resources.gpus}",
            _("{partition} has no GPUs.", partition=name),
            _("Set resources.gpus=0, or choose a partition with GPUs (their names end in -cuda)."),
        )
    if resources.cores is not None and resources.cores < facts.min_cores:
        yield Problem(
            f"resources.cores={resources.cores}",
            _(
                "{partition} takes {cores} cores or more ({where}).",
                partition=name,
                cores=facts.min_cores,
                where=_where(experiment.cluster, "min_cores"),
            ),
            _leave_cores_out(facts.min_cores),
        )


def _warnings(experiment: Experiment, request: Request, login_node: str) -> Iterator[str]:
    cluster, partition = experiment.cluster, experiment.cluster.partitions.get(request.partition)
    yield from search_warnings(experiment)
    if request.mail_type and cluster.scheduler != "slurm":
        yield _("resources.mail_type and mail_user: Slurm sends the mails, and this run does not go through it.")
    if cluster.scheduler == "slurm" and request.time_minutes < _SHORT_MINUTES:
        yield _(
            "resources.time={time} is short: a start first imports the framework and reads its data, and is told to "
            "save {signal} s before the limit, or up to 30 s earlier. A run that comes no further in three starts is "
            "given up. Set resources.time={least} (minutes) or more.",
            time=experiment.resources.time,
            signal=request.signal_seconds,
            least=_SHORT_MINUTES,
        )
    if cluster.account_cores and request.total_cores > cluster.account_cores:
        yield _(
            "{cores} cores are more than the {most} that an account may use at once (cluster.account_cores): the job "
            "may wait for ever with AssocGrpCpuLimit.",
            cores=request.total_cores,
            most=cluster.account_cores,
        )
    if partition is None:
        return
    if partition.access:
        yield _("{partition} is open to {access}.", partition=request.partition, access=_(partition.access))
    if partition.login_nodes and login_node and login_node not in partition.login_nodes:
        yield _(
            "{partition} takes jobs from {hosts}; this is {here}.",
            partition=request.partition,
            hosts=_(" and ").join(partition.login_nodes),
            here=login_node,
        )
