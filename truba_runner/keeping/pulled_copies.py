"""Old pulls: copies that `truba pull` has made here, and that nobody has pulled again for long."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from truba_runner.runs import runs_folders
from truba_runner.runs.run_directory import PULLED, RunDir
from truba_runner.storage import safe_files

# What is so old is pointed at, as what a site may have purged since; it goes when it is asked for.
OLD_DAYS = 30
_DAY_SECONDS = 86_400


def older_than(days: float, runs_folder: Path | None = None) -> list[RunDir]:
    """Copies that were last brought up to date more than so many days ago, the oldest first."""
    folders = [runs_folder] if runs_folder else runs_folders.folders()
    # By its mark: one whose deletion was cut short has no other record any more.
    found = [RunDir(file.parent) for folder in folders for file in folder.glob(f"*/{PULLED}")]
    found = [run for run in found if safe_files.is_folder(run.path)]
    until = time.time() - days * _DAY_SECONDS
    return sorted((run for run in found if last_looked(run) < until), key=last_looked)


def last_looked(run: RunDir) -> float:
    """When a copy was last brought up to date, in seconds since 1970."""
    try:
        return float(run.pulled().get("time", 0))
    except OSError:  # When is not known; it is not taken for old.
        return time.time()


def files(run: RunDir) -> list[Path]:
    """Every file of a copy."""
    return [path for path in sorted(run.path.rglob("*")) if path.is_symlink() or not path.is_dir()]


def delete(run: RunDir) -> None:
    """Deletes a copy, with the records of sweeps of which no run is left; its mark goes last."""
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
