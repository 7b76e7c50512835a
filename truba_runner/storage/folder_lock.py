"""Lock of a runs folder (flock), which sbatch inherits."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truba_runner.storage import lock_waits

LOCK = ".lock"
# A submission holds the lock for a second; for minutes, if Slurm does not answer.
LOCK_SECONDS = 120.0


@contextmanager
def lock(runs_folder: Path, wait_seconds: float = LOCK_SECONDS) -> Iterator[int]:
    """Lock a runs folder against other commands of its owner; yield the lock's file descriptor.

    A child that inherits the descriptor keeps the lock while it lives. A file system without locks is used without one.

    Raises:
        truba_runner.errors.Failed: another process held the lock for `wait_seconds`.
    """
    runs_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_waits.holding(runs_folder / LOCK, _flock, wait_seconds) as handle:
        yield handle


def _flock(handle: int, how: int) -> None:
    try:
        fcntl.flock(handle, how)
    except OSError as error:  # Any other error: the file system has no locks.
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise
