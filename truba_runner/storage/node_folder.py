"""A folder on the node's own disk for as long as a job is there: private, removed at its end, or by the next job."""

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


@contextmanager
def made(scratch: Path, label: str) -> Iterator[Path]:
    """Makes `truba-UID-LABEL` in `scratch`, readable by its owner alone, and removes it afterwards.

    A lock on it shows that its job lives. Folders of jobs that were killed before they could tidy up go first.

    Raises:
        OSError: it can't be made there, or somebody else has taken its name.
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
    """The lock's file descriptor."""
    for _attempt in range(_ATTEMPTS):
        os.mkdir(folder, 0o700)  # Fails where anything has this name, a link of another user's included.
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_SH)
        # Another job's sweep may have come between the two.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), os.lstat(folder)):
                return held
        os.close(held)
    raise OSError(_("{folder} is removed again and again", folder=folder))


def _sweep(scratch: Path) -> None:
    """Removes this user's folders that no living process holds."""
    for folder in scratch.glob(f"truba-{os.getuid()}-*"):
        with suppress(OSError):
            about = os.lstat(folder)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)
