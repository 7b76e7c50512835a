"""Derive the resources that one job requests from an experiment and its partition's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truba_runner.config.backends import TRAITS
from truba_runner.config.durations import parse_minutes
from truba_runner.config.partitions import asked_for, default_cores
from truba_runner.config.schema import Cluster, Experiment, Resources


@dataclass(frozen=True)
class Request:
    """Resources of one job. Cores, GPUs and memory are per node unless the name says otherwise."""

    partition: str
    account: str
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus: int
    # Per node. None: requested per core, or the partition's default for these cores.
    memory_gb: float | None
    time_minutes: int
    signal_seconds: int
    constraint: str
    mail_type: str = ""
    mail_user: str = ""
    memory_per_cpu_gb: float | None = None
    # Nodes as Slurm writes them: akya3,akya[7-9].
    exclude: str = ""
    nodelist: str = ""
    qos: str = ""
    reservation: str = ""
    exclusive: bool = False
    requeue: bool = True
    # Further options of sbatch, by their long names.
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    # The option of sbatch that requests the GPUs.
    gpu_option: str = "--gres=gpu:{gpus}"
    # The login nodes whose Slurm has the job, and those of the site's other Slurm clusters, which do not know it; names
    # separated by commas.
    login_nodes: str = ""
    other_login_nodes: str = ""

    @property
    def cores(self) -> int:
        """Cores per node."""
        return self.tasks_per_node * self.cpus_per_task

    @property
    def total_cores(self) -> int:
        """Cores on all nodes, for which the account is charged."""
        return self.nodes * self.cores

    @property
    def node_memory_gb(self) -> float | None:
        """Memory per node; None: the partition's default."""
        return self.memory_per_cpu_gb * self.cores if self.memory_per_cpu_gb else self.memory_gb


def processes(experiment: Experiment) -> int:
    """Return how many processes train the network together, on all nodes."""
    return experiment.resources.nodes * _tasks_per_node(experiment)


def derive(experiment: Experiment) -> Request:
    """Return the request of an experiment, whether it is allowed or not."""
    resources = experiment.resources
    facts = asked_for(experiment)
    tasks = _tasks_per_node(experiment)
    cores = resources.cores or default_cores(facts, resources.gpus)
    try:
        time_minutes = job_minutes(resources)
    except ValueError:
        time_minutes = 0
    cpus_per_task = max(1, cores // tasks)
    per_node, per_cpu = _memory(experiment, tasks * cpus_per_task)
    return Request(
        partition=resources.partition,
        account=resources.account,
        nodes=resources.nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus_per_task,
        gpus=resources.gpus,
        memory_gb=per_node,
        time_minutes=time_minutes,
        signal_seconds=resources.signal_seconds or min(90, 30 * time_minutes),
        constraint=resources.constraint,
        mail_type=resources.mail_type.upper() or ("END,FAIL" if resources.mail_user else ""),
        mail_user=resources.mail_user,
        memory_per_cpu_gb=per_cpu,
        exclude=node_list(resources.exclude),
        nodelist=node_list(resources.nodelist),
        reservation=resources.reservation,
        exclusive=resources.exclusive,
        requeue=experiment.cluster.requeue,
        sbatch={long_option(key): value for key, value in resources.sbatch.items() if _is_set(value)},
        qos=resources.qos or next(iter(facts.qos), ""),
        gpu_option=experiment.cluster.gpu_option,
        login_nodes=",".join(facts.login_nodes),
        other_login_nodes=",".join(_others(experiment.cluster, facts.login_nodes)),
    )


def _is_set(value: Any) -> bool:
    """Return whether an option is given: null and false leave it out, 0 is a value."""
    return value is not None and value is not False


def _memory(experiment: Experiment, cores: int) -> tuple[float | None, float | None]:
    """Return the memory to request per node and per core, in the form that the site accepts; at most one is set."""
    resources, cluster = experiment.resources, experiment.cluster
    per_node, per_cpu = resources.memory_gb, resources.memory_per_cpu_gb
    if per_node is None:
        return None, cluster.default_memory_per_cpu_gb if per_cpu is None else per_cpu
    return (None, per_node / cores) if cluster.memory == "per_cpu" else (per_node, per_cpu)


def node_list(value: Any) -> str:
    """Return nodes, given as one text or as a list of texts, as sbatch takes them."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value or "")


def long_option(key: str) -> str:
    """Return the name of an option of sbatch as it stands after the two dashes: `gpu_freq` is `gpu-freq`."""
    return str(key).lstrip("-").replace("_", "-")


def _others(cluster: Cluster, own: Sequence[str]) -> list[str]:
    """Return the site's login nodes that are not among `own`, so use another Slurm; empty if `own` is empty."""
    known = {host for partition in cluster.partitions.values() for host in partition.login_nodes}
    return sorted(known - set(own)) if own else []


def _tasks_per_node(experiment: Experiment) -> int:
    traits = TRAITS.get(experiment.job.backend)
    return max(1, experiment.resources.gpus) if traits and traits.task_per_gpu else 1


def job_minutes(resources: Resources) -> int:
    """Return the time limit of one job: all of the time, or one segment of it.

    Raises:
        ValueError: `time` or `segment` is no duration.
    """
    whole = parse_minutes(resources.time)
    return min(whole, parse_minutes(resources.segment)) if resources.segment else whole
