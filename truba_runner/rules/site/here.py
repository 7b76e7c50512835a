"""The machine where a command was typed, as far as the rules of a site need to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from truba_runner.slurm.capacity import LivePartition


@dataclass(frozen=True)
class Here:
    """The machine where a command was typed; by default nothing is known of it."""

    # Short host name.
    host: str = ""
    # The shell command that repeats the user's command in the same folder.
    command: str = ""
    # Queries this machine's Slurm for its partitions; returns None if there is no Slurm, or no answer.
    live: Callable[[], Mapping[str, LivePartition] | None] = lambda: None
    # The environment of the shell.
    shell: Mapping[str, str] = field(default_factory=dict)
