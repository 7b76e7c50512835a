"""Private temporary folder of a job on the node's own disk, removed at the job's end, or by the user's next job."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from truba_runner.language import _

_ATTEMPTS = 5
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def made(scratch: Path, label: str) -> Iterator[Path]:
    """Create `truba-UID-LABEL` in `scratch`, accessible to its owner alone; remove it at the end.

    A lock on the folder shows that its job lives. First, remove folders that killed jobs have left.

    Raises:
        OSError: the folder can't be created, or another user has taken its name.
    """
    folder = scratch / f"truba-{os.getuid()}-{label}"
    _sweep(scratch)
    held = _made_and_held(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _made_and_held(folder: Path) -> int:
    """Create the folder, lock it and return the lock's file descriptor."""
    for _attempt in range(_ATTEMPTS):
        os.mkdir(folder, 0o700)  # Fails if anything has this name, even another user's link.
        try:
            held = os.open(folder, _FOLDER)
        except FileNotFoundError:
            continue
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_SH)
        # Another job's `_sweep` may have removed the folder before it was locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), os.lstat(folder)):
                return held
        os.close(held)
    raise OSError(_("{folder} is deleted again each time it is created", folder=folder))


def _sweep(scratch: Path) -> None:
    """Remove this user's folders that no living process has locked."""
    for folder in scratch.glob(f"truba-{os.getuid()}-*"):
        with suppress(OSError):
            about = os.lstat(folder)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            held = os.open(folder, _FOLDER)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)
