"""`truba expiring [--days N]`: runs of which the site will soon delete files, as it does with old ones on scratch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner import archive, code_archives, places
from truba_runner.commands import parser, print_json
from truba_runner.errors import Problem, Refused
from truba_runner.language import _, counted
from truba_runner.rundir import RunDir

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Expiring:
    """A run, when its first file goes, and how many go within the days that were asked about."""

    run: RunDir
    first: float
    files: int
    size_bytes: int
    # Whether it has its result. One that has not goes on from what is there.
    finished: bool


def main(arguments: Sequence[str]) -> int:
    """Prints the runs, the most urgent first. A file's age counts from when it was last written."""
    options = parser("expiring", _("Runs on scratch of which files will be purged soon, and what keeps them."))
    options.add_argument(
        "--days", type=int, default=7, metavar="N", help=_("within so many days (default: %(default)s)")
    )
    given = options.parse_args(arguments)
    if given.days < 0:
        raise Refused(
            Problem(f"--days {given.days}", _("it is a number of days, 0 or more."), _("For example --days 7."))
        )
    now = time.time()
    asked = (expiring(run, now + given.days * _DAY_SECONDS) for run in places.runs(given.runs))
    found = sorted((one for one in asked if one), key=lambda one: one.first)
    if given.json:
        print_json([_as_json(one) for one in found])
        return 0
    for one in found:
        print(f"{_files(one)}, {_when((one.first - now) / _DAY_SECONDS)}")
    for remedy in _remedies(found):
        print(remedy)
    if not found:
        print(
            counted("no run has a file that is purged within {count} day",
                    "no run has a file that is purged within {count} days", given.days)
        )  # fmt: skip
    return 0


def _as_json(one: Expiring) -> dict[str, object]:
    about = {"run": one.run.id, "first": one.first, "files": one.files, "bytes": one.size_bytes}
    return {**about, "finished": one.finished}


def _files(one: Expiring) -> str:
    size = one.size_bytes / 1e6
    return counted("{run}: {count} file, {size:,.1f} MB", "{run}: {count} files, {size:,.1f} MB",
                   one.files, run=one.run.id, size=size)  # fmt: skip


def _when(days: float) -> str:
    if days > 1:
        return counted("the first in {count} day", "the first in {count} days", round(days))
    return _("the first within a day") if days > 0 else _("the first any moment now")


def _remedies(found: Sequence[Expiring]) -> list[str]:
    """What helps those that are finished, and those that are not."""
    named = [" ".join(one.run.id for one in found if one.finished is finished) for finished in (True, False)]
    told = []
    if named[0]:
        told.append(_("to archive them to home: truba keep {runs}", runs=named[0]))
    if named[1]:
        told.append(
            _(
                "not finished, and in need of these files to go on: {runs}. Given again, the same command writes "
                "config and code anew (after truba cancel, of one that waits or trains), and each epoch a checkpoint; "
                "truba keep archives what there is of one that is in no queue.",
                runs=named[1],
            )
        )
    return told


def expiring(run: RunDir, until: float) -> Expiring | None:
    """What of a run goes until then, in seconds since 1970; None: nothing."""
    days = _scratch_days(run)
    if not days:
        return None
    paths = [*archive.kept_files(run.path), *code_archives.of_run(run)]
    files = [(path.stat().st_mtime + days * _DAY_SECONDS, path) for path in paths]
    going = [(when, path) for when, path in files if when <= until]
    if not going:
        return None
    size = sum(path.stat().st_size for _when, path in going)
    return Expiring(run, min(going)[0], len(going), size, bool(run.result()))


def _scratch_days(run: RunDir) -> int:
    """After how many days the run's site deletes files; 0 where it does not, or the run does not lie on scratch."""
    try:
        cluster = run.read_config()["cluster"]
        scratch = Path(cluster["scratch"] or "/nowhere")
        return int(cluster.get("scratch_days", 0)) if run.path.is_relative_to(scratch) else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0
