"""Read the job, rank and number of tasks of this process from the variables that Slurm sets (man srun)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Allocation:
    """Job and rank of this process. `rank` counts from 0 over all nodes."""

    job_id: str
    job_name: str
    rank: int
    tasks: int
    on_slurm: bool
    # Whether this is one of several packed runs, which share the job.
    packed: bool = False


def current(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Return the allocation of this process; for a local run it is named by TRUBA_JOB_ID and TRUBA_JOB_NAME."""
    if "TRUBA_JOB_ID" in environment:
        return Allocation(environment["TRUBA_JOB_ID"], environment.get("TRUBA_JOB_NAME", ""), 0, 1, on_slurm=False)
    job_id = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in environment:
        job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return Allocation(
        job_id=job_id,
        job_name=environment.get("SLURM_JOB_NAME", ""),
        rank=int(environment.get("SLURM_PROCID", 0)),
        tasks=int(environment.get("SLURM_NTASKS", 1)),
        on_slurm=bool(job_id),
        packed="TRUBA_CREW" in environment,
    )
