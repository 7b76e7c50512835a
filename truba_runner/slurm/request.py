"""Derive the resources that one job requests from an experiment and its partition's facts."""

from __future__ import annotations

from dataclasses import dataclass

from truba_runner.config.backends import TRAITS
from truba_runner.config.durations import parse_minutes
from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment, Resources


@dataclass(frozen=True)
class Request:
    """Resources of one job. Cores, GPUs and memory are per node unless the name says otherwise."""

    partition: str
    account: str
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus: int
    # None: the partition's default for these cores.
    memory_gb: float | None
    time_minutes: int
    signal_seconds: int
    constraint: str
    mail_type: str = ""
    mail_user: str = ""

    @property
    def cores(self) -> int:
        """Cores per node."""
        return self.tasks_per_node * self.cpus_per_task

    @property
    def total_cores(self) -> int:
        """Cores on all nodes, for which the account is charged."""
        return self.nodes * self.cores


def processes(experiment: Experiment) -> int:
    """Return how many processes train the network together, on all nodes."""
    return experiment.resources.nodes * _tasks_per_node(experiment)


def derive(experiment: Experiment) -> Request:
    """Return the request of an experiment, whether it is allowed or not."""
    resources = experiment.resources
    facts = asked_for(experiment)
    tasks = _tasks_per_node(experiment)
    cores = resources.cores or (resources.gpus * facts.cores_per_gpu if facts.gpus_per_node else facts.min_cores)
    try:
        time_minutes = job_minutes(resources)
    except ValueError:
        time_minutes = 0
    return Request(
        partition=resources.partition,
        account=resources.account,
        nodes=resources.nodes,
        tasks_per_node=tasks,
        cpus_per_task=max(1, cores // tasks),
        gpus=resources.gpus,
        memory_gb=resources.memory_gb,
        time_minutes=time_minutes,
        signal_seconds=resources.signal_seconds or min(90, 30 * time_minutes),
        constraint=resources.constraint,
        mail_type=resources.mail_type.upper() or ("END,FAIL" if resources.mail_user else ""),
        mail_user=resources.mail_user,
    )


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
