"""What the rules of a site may know of the machine where a command was typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from truba_runner.slurm.capacity import LivePartition


@dataclass(frozen=True)
class Here:
    """The machine where a command was typed; by default nothing is known of it."""

    # Short host name.
    host: str = ""
    # A shell command that does the same in the same folder.
    command: str = ""
    # Asks the Slurm of this machine for its partitions; None: there is none, or it does not answer.
    live: Callable[[], Mapping[str, LivePartition] | None] = lambda: None
    # The environment of the shell.
    shell: Mapping[str, str] = field(default_factory=dict)
