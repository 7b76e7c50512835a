"""What a submission was made of: the job's code, the project's git commit, and the versions that submitted it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.code.snapshot import Taken

_GIT_TIMEOUT_SECONDS = 5


def record(job_file: Path, taken: Taken | None = None) -> dict[str, Any]:
    """For a submission's record: `job_file`, its `job_sha256`, `project`, `git`, `versions`, and `code` if `taken`."""
    project = Path.cwd()
    return {
        "job_file": str(job_file),
        **(taken.record() if taken else {"job_sha256": code_sha256(job_file)}),
        "project": str(project),
        "git": git_state(project),
        "versions": versions(),
    }


def passed_on(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a submission's record, what the record of a run that it trains needs to find the same code."""
    return {key: record[key] for key in ("job_file", "job_sha256", "project", "code") if key in record}


def code_sha256(file: Path) -> str:
    """Tells whether a job module is still the one that was submitted; empty where it has gone."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def git_state(folder: Path) -> dict[str, Any]:
    """`commit` and whether tracked files differ from it (`dirty`); empty where there is no repository or no git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part in a submission."""
    names = ("truba_runner", "hydra-core", "submitit")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
