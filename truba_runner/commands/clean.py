"""`truba clean [RUN…]`: frees what finished runs need no more, after showing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner import archive, places
from truba_runner.commands import parser, print_json
from truba_runner.errors import Problem, Refused
from truba_runner.rundir import RunDir


@dataclass(frozen=True)
class Freed:
    """What one run can do without."""

    run: RunDir
    files: Sequence[Path]
    size_bytes: int


def main(arguments: Sequence[str]) -> int:
    """Shows what it would delete, and deletes it with --yes or when the question is answered so."""
    options = parser(
        "clean",
        "Deletes the checkpoints that finished runs would only need to go on. The best one, models, records, plots "
        "and event files stay; runs that are not finished are not touched.",
    )
    options.add_argument("run", nargs="*", help="a run's or a sweep's id, or any unique beginning of it (default: all)")
    options.add_argument("--yes", action="store_true", help="delete without asking")
    given = options.parse_args(arguments)
    found = [freed for run in _runs(given.run, given.runs) if (freed := _freed(run)) is not None]
    if given.json:
        told = [
            {"run": one.run.id, "bytes": one.size_bytes, "files": [str(path) for path in one.files]} for one in found
        ]
        print_json({"deleted": given.yes, "runs": told})
    else:
        _show(found)
    if found and (given.yes or (not given.json and _agreed())):
        for one in found:
            for path in one.files:
                path.unlink(missing_ok=True)
        if not given.json:
            print(f"freed {sum(one.size_bytes for one in found) / 1e6:,.1f} MB")
    return 0


def _runs(prefixes: Sequence[str], runs_folder: Path | None) -> list[RunDir]:
    """The finished ones of those that were named, or of all.

    Raises:
        Refused: a run that was named is not finished.
    """
    if not prefixes:
        return [run for run in places.runs(runs_folder) if run.result()]
    wanted = []
    for prefix in prefixes:
        if sweep := places.find_sweep(prefix, runs_folder):
            wanted += [run for member in sweep.members() if (run := sweep.run(member.run)).result()]
            continue
        run = places.find(prefix, runs_folder)
        if not run.result():
            rule = "it is not finished, and its checkpoints are what it goes on from."
            raise Refused(Problem(run.id, rule, f"truba status {run.id} shows where it is."))
        wanted.append(run)
    return wanted


def _freed(run: RunDir) -> Freed | None:
    """What the run can do without; None where that is nothing. A second name of a file that stays frees no space."""
    files = archive.spare_checkpoints(run.path)
    if not files:
        return None
    sizes = (path.stat() for path in files)
    return Freed(run, files, sum(one.st_size for one in sizes if one.st_nlink == 1))


def _show(found: Sequence[Freed]) -> None:
    if not found:
        print("nothing to free: no finished run has a checkpoint that it does not need")
        return
    for one in found:
        print(f"{one.run.id}: {len(one.files)} checkpoints, {one.size_bytes / 1e6:,.1f} MB, in {one.files[0].parent}")
    count, size = sum(len(one.files) for one in found), sum(one.size_bytes for one in found)
    print(f"{count} files, {size / 1e6:,.1f} MB")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print("nothing was deleted; --yes deletes it")
        return False
    return input("delete them? [y/N] ").strip().lower() in {"y", "yes", "e", "evet"}
