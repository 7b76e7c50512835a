"""TensorBoard's event files after an interruption: cut back to where a checkpoint left them, so no step is told twice.

They are only ever appended to: ours by every start of a run, those of a job's own callbacks by the one that made them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# TensorBoard reads a folder's files in the order of their names, and nothing from one before the last.
OWN = "events.out.tfevents.0000000002.truba"


def sizes(folder: Path) -> dict[str, int]:
    """The length in bytes of each event file under `folder`, by its path from there."""
    found = {}
    for file in _event_files(folder):
        # One that its user takes away meanwhile is none of ours any more.
        with suppress(OSError):
            found[str(file.relative_to(folder))] = file.stat().st_size
    return found


def cut(folder: Path, to: Mapping[str, int]) -> None:
    """Takes back all that was written since `sizes` gave `to`.

    What was not there yet is emptied, not removed. Of ours what is written again has the same length, and a TensorBoard
    that was looking reads on where it was. Of others a copy elsewhere follows: of a file that is gone nobody could tell
    there whether the run took it back, or the disk was purged.
    """
    for file in _event_files(folder):
        size = to.get(str(file.relative_to(folder)), 0)
        with suppress(OSError):
            if size < file.stat().st_size:
                os.truncate(file, size)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))
