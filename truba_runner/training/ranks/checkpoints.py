"""Find the newest checkpoint, the same one on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.training.ranks.group import Group


def newest(
    group: Group, store: CheckpointStore, read: Callable[[IO[bytes]], dict[str, Any]]
) -> tuple[Position, dict[str, Any]] | None:
    """Return the newest checkpoint that rank 0 can read: other ranks may see files that it rejected, or not all."""
    found = store.newest(read) if group.rank == 0 else None
    exists, epoch, step = group.from_rank_0([1, found[0].epoch, found[0].step] if found else [0, 0, 0])
    if not exists:
        return None
    position = Position(epoch, step)
    return found or (position, store.at(position, read))
