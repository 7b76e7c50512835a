"""What one rank of a job does for the others, who wait for its word: a small file in the run directory.

It needs no network between the ranks, so it works before a framework has set up its own, and however long it takes. A
rank that fails ends the job, and with it those that wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from truba_runner.storage.files import write_atomically

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Rank:
    """This process among those of its job's start. `node` counts the job's nodes, `on_node` the node's processes."""

    rank: int = 0
    tasks: int = 1
    node: int = 0
    on_node: int = 0
    # Names one start of one job: a requeued job has the same id again.
    start: str = ""

    @classmethod
    def here(cls, rank: int, tasks: int, environment: Mapping[str, str] = os.environ) -> Rank:
        """Slurm tells the rest (man srun); without it there is one process."""
        if tasks == 1:
            return cls(start=_start(environment))
        return cls(
            rank, tasks, int(environment["SLURM_NODEID"]), int(environment["SLURM_LOCALID"]), _start(environment)
        )


def _start(environment: Mapping[str, str]) -> str:
    job = environment.get("SLURM_JOB_ID") or environment.get("TRUBA_JOB_ID") or str(os.getpid())
    return f"{job}.{environment.get('SLURM_RESTART_COUNT', 0)}"


def by_one(rank: Rank, folder: Path, what: str, make: Callable[[], str], per_node: bool = False) -> str:
    """What `make` returns on rank 0 (`per_node`: on the first rank of each node), on every rank.

    `folder` is shared by all nodes; `what` names the matter, once in a job's start.
    """
    if rank.tasks == 1:
        return make()
    leads = rank.on_node == 0 if per_node else rank.rank == 0
    note = folder / f".{what}{f'-{rank.node}' if per_node else ''}.{rank.start}"
    if leads:
        value = make()
        write_atomically(note, value.encode())
        return value
    while True:
        with suppress(FileNotFoundError):
            return note.read_text()
        time.sleep(_POLL_SECONDS)


def forget(rank: Rank, folder: Path, what: str) -> None:
    """Removes every note on a matter, earlier starts' too; once no rank can still be waiting for one."""
    if rank.rank == 0:
        for note in folder.glob(f".{what}[-.]*"):
            note.unlink(missing_ok=True)
