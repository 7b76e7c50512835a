"""Read the job and rank of this process from Slurm's environment variables, and remove these for Slurm's commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# Variables by which Slurm's commands find and authenticate to their cluster. All others with the prefixes below would
# change a request or the output. SLURM_JWT and SLURM_CONF_SERVER: sites without munge, without slurm.conf.
_FIND_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
# The input variables of sbatch and srun, those that a surrounding job or step has set, and those of the other commands,
# such as SQUEUE_STATES and SLURM_TIME_FORMAT (section ENVIRONMENT of their man pages).
_OF_SLURM = ("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_",
             "SPRIO_", "PMI_", "PMIX_")  # fmt: skip


def without_slurms(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for Slurm's commands, which sbatch passes to the job: without Slurm's variables."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_SLURM) or name in _FIND_SLURM}


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
    # Nodes of the job.
    nodes: int = 1


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
        nodes=int(environment.get("SLURM_JOB_NUM_NODES", 1)),
    )
