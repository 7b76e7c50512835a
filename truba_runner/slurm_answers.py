"""What Slurm's commands answer, as values: a job, what one has used, and the error of a command that failed."""

from __future__ import annotations

from dataclasses import dataclass

from truba_runner import slurm_states


class SlurmError(Exception):
    """A Slurm command failed.

    `transient`: the same command may work a moment later. `refused`: Slurm has heard the request and will not have it.
    """

    def __init__(self, command: str, message: str, transient: bool, refused: bool = False) -> None:
        """`message` is what the command printed on its standard error."""
        super().__init__(f"{command}: {message}")
        self.message = message
        self.transient = transient
        self.refused = refused


@dataclass(frozen=True)
class Job:
    """One job, or one task of a job array, as squeue or sacct tells of it."""

    job_id: str
    state: str
    partition: str = ""
    # Why it is pending, in Slurm's own word.
    reason: str = ""
    elapsed: str = ""
    time_limit: str = ""
    nodes: str = ""
    exit_code: str = ""

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return slurm_states.meaning_of(self.state).live


@dataclass(frozen=True)
class Use:
    """What a job, or one task of a job array, has used of the cluster, over all of its starts."""

    starts: int
    core_seconds: int
    gpu_seconds: int

    def __add__(self, other: Use) -> Use:
        """What both have used together."""
        starts, cores = self.starts + other.starts, self.core_seconds + other.core_seconds
        return Use(starts, cores, self.gpu_seconds + other.gpu_seconds)
