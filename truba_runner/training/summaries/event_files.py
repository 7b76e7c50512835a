"""Truncate event files to their sizes at a checkpoint when a run resumes, so that no step appears twice.

Event files are append-only: every start of a run appends to ours; each start's callbacks write files of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# One name for all starts: TensorBoard reads a folder's files by name, and only the last one again when it grows.
OWN = "events.out.tfevents.0000000002.truba"


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each event file under `folder`, by relative path."""
    found = {}
    for file in _event_files(folder):
        # The user may delete a file meanwhile.
        with suppress(OSError):
            found[str(file.relative_to(folder))] = file.stat().st_size
    return found


def cut(folder: Path, to: Mapping[str, int]) -> None:
    """Truncate the event files under `folder` to the sizes `to`, a result of `sizes`.

    Files that are not in `to` are emptied, not removed. Our own files grow to the same length again, so an open
    TensorBoard continues at its position. A pulled copy follows emptied files; from a missing one it could not know
    whether the run had truncated it or the disk was purged.
    """
    for file in _event_files(folder):
        size = to.get(str(file.relative_to(folder)), 0)
        with suppress(OSError):
            if size < file.stat().st_size:
                os.truncate(file, size)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))
