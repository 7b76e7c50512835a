"""Describe the machine where a command was typed: its name, its Slurm's partitions, and the command itself."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from truba_runner.rules.site.here import Here
from truba_runner.slurm import capacity, client
from truba_runner.slurm.capacity import LivePartition


def look() -> Here:
    """Return this machine; Slurm is queried once, when its partitions are first needed."""
    return Here(socket.gethostname().partition(".")[0], _again(), cache(_live), os.environ)


def _live() -> Mapping[str, LivePartition] | None:
    try:
        return capacity.partitions() or None if client.available() else None
    except client.SlurmError:
        return None


def _again() -> str:
    """Return a shell command that repeats this process's command in the same folder."""
    program = Path(sys.argv[0])
    started = ["-m", "truba_runner"] if program.name == "__main__.py" else [str(program.absolute())]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([sys.executable, *started, *sys.argv[1:]])}"
