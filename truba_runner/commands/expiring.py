"""`truba expiring [--days N]`: list runs with files on scratch that the site will soon delete as too old."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from truba_runner.commands import parser
from truba_runner.errors import Problem, Refused
from truba_runner.keeping import purge
from truba_runner.keeping.purge import Expiring
from truba_runner.language import _, counted
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import sweep_of
from truba_runner.status.printing import print_json
from truba_runner.status.rows import damaged_row, say_damaged


def main(arguments: Sequence[str]) -> int:
    """Print the runs, the most urgent first. A file's age counts from its last modification."""
    options = parser(
        "expiring", _("Lists runs on scratch with files that will be purged soon, and the command that archives them.")
    )
    options.add_argument(
        "--days", type=int, default=7, metavar="N", help=_("within this many days (default: %(default)s)")
    )
    given = options.parse_args(arguments)
    if given.days < 0:
        raise Refused(
            Problem(f"--days {given.days}", _("it is a number of days, 0 or more."), _("For example --days 7."))
        )
    now, every = time.time(), runs_folders.runs(given.runs)
    runs = damage.sound(every)
    found = purge.expiring(runs, now + given.days * purge.DAY_SECONDS)
    if given.json:
        damaged = [row for run in every if (row := damaged_row(run.record()))]
        print_json([*(_as_json(one) for one in sorted(found.values(), key=lambda one: one.first)), *damaged])
        return 0
    shown = _with_sweeps(runs, found)
    for one in shown:
        print(f"{_files(one)}, {_when((one.first - now) / purge.DAY_SECONDS)}")
    say_damaged(every, sys.stdout)
    for remedy in _remedies(shown):
        print(remedy)
    if not found:
        print(
            counted("no run has a file that is purged within {count} day",
                    "no run has a file that is purged within {count} days", given.days)
        )  # fmt: skip
    return 0


def _as_json(one: Expiring) -> dict[str, object]:
    about = {"run": one.name, "first": one.first, "files": one.files, "bytes": one.size_bytes}
    return {**about, "finished": one.finished}


def _files(one: Expiring) -> str:
    size = one.size_bytes / 1e6
    return counted("{run}: {count} file, {size:,.1f} MB", "{run}: {count} files, {size:,.1f} MB",
                   one.files, run=one.name, size=size)  # fmt: skip


def _when(days: float) -> str:
    if days > 1:
        return counted("the first in {count} day", "the first in {count} days", round(days))
    return _("the first within a day") if days > 0 else _("the first any moment now")


def _remedies(found: Sequence[Expiring]) -> list[str]:
    """Return what to do for finished runs, and for unfinished ones."""
    named = [" ".join(one.name for one in found if one.finished is finished) for finished in (True, False)]
    sentences = []
    if named[0]:
        sentences.append(_("to archive them to home: truba keep {runs}", runs=named[0]))
    if named[1]:
        sentences.append(
            _(
                "not finished, and these files are needed to resume: {runs}. Run the same command again (if the run "
                "is pending or running, truba cancel it first): that writes config and code again, and each epoch "
                "writes a checkpoint. If the run has no job, truba keep archives the files that it has.",
                runs=named[1],
            )
        )
    return sentences


def _with_sweeps(runs: Sequence[RunDir], found: Mapping[Path, Expiring]) -> list[Expiring]:
    """Merge the runs of a sweep, as `truba keep` makes one archive of them; sort the most urgent first."""
    groups: dict[str, list[Expiring]] = {}
    for run in runs:
        if run.path in found:
            sweep = sweep_of(run)
            groups.setdefault(sweep.id if sweep else run.id, []).append(found[run.path])
    return sorted((_together(name, group) for name, group in groups.items()), key=lambda one: one.first)


def _together(name: str, group: Sequence[Expiring]) -> Expiring:
    files, size = sum(one.files for one in group), sum(one.size_bytes for one in group)
    return Expiring(name, min(one.first for one in group), files, size, all(one.finished for one in group))
