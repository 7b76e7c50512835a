"""Check an experiment against the partition's and site's rules of `conf/cluster/`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from posixpath import normpath

from truba_runner.config.backends import TRAITS
from truba_runner.config.durations import parse_minutes, slurm_time
from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Cluster, Experiment, Partition
from truba_runner.errors import Problem, nearest
from truba_runner.language import _, marked
from truba_runner.rules.training import batch_problems
from truba_runner.slurm.request import derive, job_minutes

# A step and a save may need more than any shorter time.
_LEAST_SIGNAL_SECONDS = 10


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report every rule of the site that the experiment breaks."""
    cluster, resources = experiment.cluster, experiment.resources
    yield from _output_problems(cluster)
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
            _("{file} has no such partition.", file=_where(cluster)),
            nearest(resources.partition, cluster.partitions),
        )
        return
    yield from _constraint_problems(experiment, partition)
    facts = asked_for(experiment)
    yield from _time_problems(experiment, facts)
    if partition.families and resources.constraint not in partition.families:
        return  # The facts of a node depend on its family.
    yield from _node_problems(experiment, facts)
    if facts.gpus_per_node:
        yield from _gpu_problems(experiment, facts)
    else:
        yield from _cpu_problems(experiment, facts)


def _where(cluster: Cluster, key: str = "") -> str:
    return f"conf/cluster/{cluster.name}.yaml" + (f" ({key})" if key else "")


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
                _("a job must choose one of its GPU types ({where}).", where=where),
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
        return  # Already reported.
    key = "resources.segment" if resources.segment else "resources.time"
    if asked > allowed:
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
                where=_where(experiment.cluster, "max_time"),
            ),
            _(remedy, allowed=slurm_time(allowed)),
        )
    if resources.signal_seconds is not None:
        yield from _signal_problems(resources.signal_seconds, asked, key)


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


def _node_problems(experiment: Experiment, facts: Partition) -> Iterator[Problem]:
    resources, name = experiment.resources, experiment.resources.partition
    if facts.nodes and resources.nodes > facts.nodes:
        yield Problem(
            f"resources.nodes={resources.nodes}",
            _("{partition} has {nodes} nodes.", partition=name, nodes=facts.nodes),
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
    yield from batch_problems(experiment)
    cores, least = resources.cores, resources.gpus * facts.cores_per_gpu
    if cores is not None and (cores % facts.cores_per_gpu or cores < least):
        yield Problem(
            f"resources.cores={cores}",
            _(
                "{partition} requires cores in multiples of {cores}, at least {cores} per GPU ({where}).",
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
                "the {backend} backend runs {tasks} tasks on a node, and each needs the same number of cores.",
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
