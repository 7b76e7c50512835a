"""Run Slurm's commands from inside a container, which has none: `container/apptainer` runs them outside.

A call is a folder in `$TRUBA_SLURM_RELAY` with the files argv, in, out, err and status; its name is written to the
pipe `calls`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_SECONDS = 0.02


def folder() -> Path | None:
    """Return the folder for calls; None if Slurm's commands are run directly."""
    found = os.environ.get("TRUBA_SLURM_RELAY")
    return Path(found) if found else None


def call(
    relay: Path, argv: Sequence[str], text: str | None, timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Have a command run outside the container; `text` is its standard input.

    Raises:
        subprocess.TimeoutExpired: there is no answer in time.
        OSError: no process outside reads the calls.
    """
    own = Path(tempfile.mkdtemp(dir=relay, prefix="call-"))
    (own / "argv").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
    (own / "in").write_text(text or "")
    pipe = os.open(relay / "calls", os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(pipe, f"{own.name}\n".encode())
    finally:
        os.close(pipe)
    deadline = time.monotonic() + timeout_seconds
    while not (own / "status").exists():
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(list(argv), timeout_seconds)
        time.sleep(_POLL_SECONDS)
    status = int((own / "status").read_text())
    return subprocess.CompletedProcess(list(argv), status, (own / "out").read_text(), (own / "err").read_text())
