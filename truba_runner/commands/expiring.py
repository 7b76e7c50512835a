"""`truba expiring [--days N]`: runs of which the site will soon delete files, as it does with old ones on scratch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner import archive, places
from truba_runner.commands import parser, print_json
from truba_runner.rundir import RunDir

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Expiring:
    """A run, when its first file goes, and how many go within the days that were asked about."""

    run: RunDir
    first: float
    files: int
    size_bytes: int


def main(arguments: Sequence[str]) -> int:
    """Prints the runs, the most urgent first. A file's age counts from when it was last written."""
    options = parser("expiring", "Runs on scratch of which files will be purged soon, and what keeps them.")
    options.add_argument("--days", type=int, default=7, metavar="N", help="within so many days (default: %(default)s)")
    given = options.parse_args(arguments)
    now = time.time()
    asked = (expiring(run, now + given.days * _DAY_SECONDS) for run in places.runs(given.runs))
    found = sorted((one for one in asked if one), key=lambda one: one.first)
    if given.json:
        print_json(
            [{"run": one.run.id, "first": one.first, "files": one.files, "bytes": one.size_bytes} for one in found]
        )
        return 0
    for one in found:
        left = (one.first - now) / _DAY_SECONDS
        when = f"in {left:.0f} days" if left > 1 else "within a day" if left > 0 else "any moment now"
        print(f"{one.run.id}: {one.files} files, {one.size_bytes / 1e6:,.1f} MB, the first {when}")
    if found:
        several = "".join(f" {one.run.id}" for one in found)
        print(f"to archive them to home: truba keep{several}")
    else:
        print(f"no run has a file that is purged within {given.days} days")
    return 0


def expiring(run: RunDir, until: float) -> Expiring | None:
    """What of a run goes until then, in seconds since 1970; None: nothing."""
    days = _scratch_days(run)
    if not days:
        return None
    files = [(path.stat().st_mtime + days * _DAY_SECONDS, path) for path in archive.kept_files(run.path)]
    going = [(when, path) for when, path in files if when <= until]
    if not going:
        return None
    return Expiring(run, min(going)[0], len(going), sum(path.stat().st_size for _, path in going))


def _scratch_days(run: RunDir) -> int:
    """After how many days the run's site deletes files; 0 where it does not, or the run does not lie on scratch."""
    try:
        cluster = run.read_config()["cluster"]
        scratch = Path(cluster["scratch"] or "/nowhere")
        return int(cluster.get("scratch_days", 0)) if run.path.is_relative_to(scratch) else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0
