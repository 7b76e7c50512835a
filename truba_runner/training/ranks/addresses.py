"""Derive the host and port of each rank from Slurm's variables."""

from __future__ import annotations

from collections.abc import Mapping

from truba_runner.errors import Failed
from truba_runner.older_python import zip_equal
from truba_runner.slurm import hostlist

# Above the ports of common services, below Linux's ephemeral ports (from 32768).
FIRST_PORT, PORTS = 20000, 12768


def worker_addresses(environment: Mapping[str, str], tasks: int) -> list[str]:
    """Return `HOST:PORT` of every rank, from the variables that Slurm sets for a job step (man srun).

    The port is derived from the job id, so every rank can compute it and two jobs on a node differ: ids of jobs that
    run at the same time are seldom 12,768 apart. If they are, the second fails to start its server.

    Raises:
        truba_runner.errors.Failed: the variables are missing, or give another number of tasks.
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    try:
        names, counts = hostlist.expand(nodes), hostlist.tasks_per_node(per_node)
        job_id = int(environment.get("SLURM_JOB_ID", "0"))
        placed = [(name, local) for name, count in zip_equal(names, counts) for local in range(count)]
    except ValueError as error:
        raise Failed(
            "Slurm's variables do not say where the {tasks} tasks of this job are: SLURM_JOB_NODELIST={nodes!r}, "
            "SLURM_TASKS_PER_NODE={per_node!r} ({error}). Start them with srun.",
            tasks=tasks,
            nodes=nodes,
            per_node=per_node,
            error=error,
        ) from error
    if len(placed) != tasks:
        raise Failed(
            "SLURM_NTASKS is {tasks}, but {nodes} with {per_node} tasks a node have {placed}.",
            tasks=tasks,
            nodes=nodes,
            per_node=per_node,
            placed=len(placed),
        )
    return [f"{name}:{FIRST_PORT + (job_id * max(counts) + local) % PORTS}" for name, local in placed]
