"""Lock of a runs folder (flock), which sbatch inherits."""

from __future__ import annotations

import fcntl
import os
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
    path = runs_folder / LOCK
    handle = lock_waits.opened(path)

    def taken() -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # Which one depends on the file system.
            return False
        except OSError:
            pass
        return True

    try:
        lock_waits.wait_for(taken, wait_seconds, path)
        lock_waits.sign(handle)
        yield handle
    finally:
        os.close(handle)
