"""Record what was submitted: the job's code, the project's git commit, and the package versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from truba_runner.code import git
from truba_runner.code.snapshot import Taken
from truba_runner.runs.events import Event


def record(job_file: Path, taken: Taken | None = None) -> dict[str, Any]:
    """Return `job_file`, `job_sha256`, `project`, `git`, `versions` and, if `taken`, `code` for a submission record."""
    project = Path.cwd()
    return {
        "job_file": str(job_file),
        **(taken.record() if taken else {"job_sha256": code_sha256(job_file)}),
        "project": str(project),
        "git": git_state(project),
        "versions": versions(),
    }


def passed_on(record: Event) -> Event:
    """Return the fields of a submission record by which a run that it trains finds the same code."""
    return Event(job_file=record.job_file, job_sha256=record.job_sha256, project=record.project, code=record.code)


def code_sha256(file: Path) -> str:
    """Return the SHA-256 of a job module, by which changes since submission are detected; empty if unreadable."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def git_state(folder: Path) -> dict[str, Any]:
    """Return `commit` and whether tracked files differ from it (`dirty`); empty without a repository or git."""
    if (commit := git.output(folder, "rev-parse", "HEAD")) is None:
        return {}
    if (changed := git.output(folder, "status", "--porcelain", "--untracked-files=no")) is None:
        return {}
    return {"commit": commit.decode().strip(), "dirty": bool(changed.strip())}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages involved in a submission."""
    names = ("truba_runner", "hydra-core", "submitit")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
