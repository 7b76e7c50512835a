"""Run git in a project's folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

_TIMEOUT_SECONDS = 5


def output(folder: Path, *arguments: str) -> bytes | None:
    """Return what a git command prints; None without git or a repository, and if git takes too long."""
    argv = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
