"""Find and delete old copies made by `truba pull` on this machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from truba_runner.keeping.purge import DAY_SECONDS
from truba_runner.runs import runs_folders
from truba_runner.runs.record_files import PULLED
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import safe_files

# Older copies are only mentioned, and deleted on request: the site may have purged the originals.
OLD_DAYS = 30


def older_than(days: float, runs_folder: Path | None = None) -> list[RunDir]:
    """Return the copies that were last updated more than `days` days ago, oldest first."""
    folders = [runs_folder] if runs_folder else runs_folders.folders()
    # A copy whose deletion was interrupted has no other file left than this one.
    found = [RunDir(file.parent) for folder in folders for file in folder.glob(f"*/{PULLED}")]
    found = [run for run in found if safe_files.is_folder(run.path)]
    until = time.time() - days * DAY_SECONDS
    return sorted((run for run in found if last_looked(run) < until), key=last_looked)


def last_looked(run: RunDir) -> float:
    """Return when a copy was last updated, in seconds since 1970."""
    try:
        return float(run.pulled().get("time", 0))
    except OSError:  # Unknown: do not treat the copy as old.
        return time.time()


def files(run: RunDir) -> list[Path]:
    """Return every file of a copy."""
    return [path for path in sorted(run.path.rglob("*")) if path.is_symlink() or not path.is_dir()]


def delete(run: RunDir) -> None:
    """Delete a copy, the file that marks it last, and then the records of sweeps that have no run left."""
    for path in run.path.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != PULLED:
            path.unlink()
    (run.path / PULLED).unlink()
    run.path.rmdir()
    for sweep in runs_folders.sweeps(run.path.parent):
        members = [member.run for member in sweep.members()]
        if run.id in members and not any(sweep.run(member).path.exists() for member in members):
            shutil.rmtree(sweep.path)
