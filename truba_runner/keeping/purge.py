"""What of runs the site will delete soon, as it does with files on scratch that nobody has written to for long."""

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
    """A run, or those of a sweep: when the first file goes, and how many go within the days that were asked about."""

    name: str
    first: float
    files: int
    size_bytes: int
    # Whether it has its result. A run that has not goes on from what is there.
    finished: bool


def expiring(runs: Sequence[RunDir], until: float) -> dict[Path, Expiring]:
    """What of each run goes until then, in seconds since 1970, by the run's directory."""
    sites = _Sites(runs)
    found: dict[Path, Expiring] = {}
    for run in runs:
        try:
            one = _of_run(run, sites.days(run), until)
        except OSError as error:  # Of the others it is known.
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(_("{run}: what of it will be purged is not known ({why})", run=run.id, why=why), file=sys.stderr)
            continue
        if one is not None:
            found[run.path] = one
    return found


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
    """None: it has gone meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


class _Sites:
    """After how many days a run's site deletes files, as the runs' configs say."""

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self._own = {run.path: _scratch_days(run) for run in runs}
        # A config is among the first files that a purge takes; the other runs of the folder lie on the same site.
        self._of_folder = {path.parent: days for path, days in self._own.items() if days is not None}

    def days(self, run: RunDir) -> int:
        """0: it deletes none, or the run does not lie on scratch."""
        own = self._own[run.path]
        return self._of_folder.get(run.path.parent, 0) if own is None else own


def _scratch_days(run: RunDir) -> int | None:
    """None: it is not known."""
    try:
        cluster = run.read_config()["cluster"]
        scratch = Path(cluster["scratch"] or "/nowhere")
        return int(cluster.get("scratch_days", 0)) if run.path.is_relative_to(scratch) else 0
    except (OSError, KeyError, TypeError, ValueError):
        return None
