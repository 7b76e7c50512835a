"""TensorBoard's event files after an interruption: cut back to where a checkpoint left them, so no step is told twice.

They are only ever appended to, and each start of the run opens new ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from truba_runner.backends import hparams
from truba_runner.rundir import write_atomically


def sizes(folder: Path) -> dict[str, int]:
    """The length in bytes of each event file under `folder`, by its path from there."""
    found = {}
    for file in _event_files(folder):
        # One that its user takes away meanwhile is none of ours any more.
        with suppress(OSError):
            found[str(file.relative_to(folder))] = file.stat().st_size
    return found


def cut(folder: Path, to: Mapping[str, int]) -> None:
    """Takes back all that was written since `sizes` gave `to`."""
    for file in _event_files(folder):
        size = to.get(str(file.relative_to(folder)))
        with suppress(OSError):
            if size is None:
                file.unlink()
            elif size < file.stat().st_size:
                os.truncate(file, size)


def join(folder: Path) -> None:
    """Makes one of those that lie together, for a run that has ended: each is a row of records, and so are they all."""
    together: dict[Path, list[Path]] = {}
    for file in _event_files(folder):
        if file.name != hparams.FILE:
            together.setdefault(file.parent, []).append(file)
    for first, *others in together.values():
        # A disk that is full has room for them as they are.
        with suppress(OSError):
            if others:
                write_atomically(first, b"".join(file.read_bytes() for file in (first, *others)))
            for file in others:
                file.unlink()


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))
