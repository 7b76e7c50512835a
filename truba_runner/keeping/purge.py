"""Find the files of runs that the site will soon delete, because they are on scratch and have not changed for long."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner.code import archives
from truba_runner.keeping import archive
from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Expiring:
    """Files of a run, or of a sweep's runs, that will be purged by the given time: the first time, number and size."""

    name: str
    first: float
    files: int
    size_bytes: int
    # Whether the run has a result; otherwise it may need these files to resume.
    finished: bool


def expiring(runs: Sequence[RunDir], until: float) -> dict[Path, Expiring]:
    """Return what will be purged until `until` (seconds since 1970), by run directory."""
    sites = _Sites(runs)
    expiring_by_run: dict[Path, Expiring] = {}
    for run in runs:
        try:
            one = _of_run(run, sites.days(run), until)
        except OSError as error:  # Report this run and check the others.
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(
                _("{run}: it is not known which of its files will be purged ({why})", run=run.id, why=why),
                file=sys.stderr,
            )
            continue
        if one is not None:
            expiring_by_run[run.path] = one
    return expiring_by_run


def _of_run(run: RunDir, days: int, until: float) -> Expiring | None:
    if not days:
        return None
    paths = [*archive.kept_files(run.path), *archives.of_run(run)]
    files = [(about.st_mtime + days * DAY_SECONDS, about.st_size) for about in map(_about, paths) if about]
    going = [(when, size) for when, size in files if when <= until]
    if not going:
        return None
    return Expiring(run.id, min(going)[0], len(going), sum(size for _when, size in going), bool(run.result()))


def _about(path: Path) -> os.stat_result | None:
    """Return the file's status; None if it was deleted meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


class _Sites:
    """After how many days each run's site deletes files, read from the runs' configs."""

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self._own = {run.path: _scratch_days(run) for run in runs}
        # A config is among the first files to be purged; the other runs of the folder are on the same site.
        self._of_folder = {path.parent: days for path, days in self._own.items() if days is not None}

    def days(self, run: RunDir) -> int:
        """Return the number of days; 0 if the site deletes nothing or the run is not on scratch."""
        own = self._own[run.path]
        return self._of_folder.get(run.path.parent, 0) if own is None else own


def _scratch_days(run: RunDir) -> int | None:
    """Return the number of days from the run's own config; None if it cannot be read."""
    try:
        cluster = run.read_config()["cluster"]
        scratch = Path(cluster["scratch"] or "/nowhere")
        return int(cluster.get("scratch_days", 0)) if run.path.is_relative_to(scratch) else 0
    except (OSError, KeyError, TypeError, ValueError):
        return None
