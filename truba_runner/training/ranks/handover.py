"""Let one rank do some work while the others wait for its result, a small file in the run directory.

This needs no network between the ranks, so it works before a framework has connected them, and has no timeout. A rank
that fails ends the job, and with it the waiting ranks. Once connected, ranks ask the rest of each other in `group`.
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
    """The place of this process in its job: `rank` of `tasks`; `node`: index of its node; `on_node`: rank there."""

    rank: int = 0
    tasks: int = 1
    node: int = 0
    on_node: int = 0
    # Names one start of one job: a requeued job has the same id again.
    start: str = ""

    @classmethod
    def here(cls, rank: int, tasks: int, environment: Mapping[str, str] = os.environ) -> Rank:
        """Return this process's Rank, with node and local rank from Slurm's variables (man srun) if `tasks` > 1."""
        if tasks == 1:
            return cls(start=_start(environment))
        return cls(
            rank, tasks, int(environment["SLURM_NODEID"]), int(environment["SLURM_LOCALID"]), _start(environment)
        )


def _start(environment: Mapping[str, str]) -> str:
    job = environment.get("SLURM_JOB_ID") or environment.get("TRUBA_JOB_ID") or str(os.getpid())
    return f"{job}.{environment.get('SLURM_RESTART_COUNT', 0)}"


def by_one(rank: Rank, folder: Path, what: str, make: Callable[[], str], per_node: bool = False) -> str:
    """Run `make` on rank 0 (`per_node`: on the first rank of each node); return its result on every rank.

    `folder` is shared by all nodes; `what` is the name of the work, unique within one start of a job.
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
    """Delete all result files of `what`, those of earlier starts too; call once no rank can still wait for one."""
    if rank.rank == 0:
        for note in folder.glob(f".{what}[-.]*"):
            note.unlink(missing_ok=True)
