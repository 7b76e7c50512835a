"""`truba clean [RUN…] [--pulls DAYS]`: delete spare checkpoints, unneeded code and old pulled copies, after asking."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from truba_runner import terminal
from truba_runner.code import archives
from truba_runner.commands import parser
from truba_runner.errors import Problem, Refused
from truba_runner.keeping import archive, pulled_copies
from truba_runner.language import _, counted
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import CODE, RunDir
from truba_runner.status.printing import print_json
from truba_runner.status.rows import say_damaged
from truba_runner.storage import private


@dataclass(frozen=True)
class Freed:
    """Deletable files, with the line that describes them, their fields in JSON, and the function to delete them."""

    shown: str
    about: dict[str, Any]
    files: Sequence[Path]
    size_bytes: int
    delete: Callable[[], None]


def main(arguments: Sequence[str]) -> int:
    """Show what can be deleted, and delete it with --yes or after the user agrees."""
    options = parser(
        "clean",
        _(
            "Deletes checkpoints that finished runs no longer need, and submitted code whose runs no longer exist. "
            "The best checkpoint, models, records, plots and event files are kept; unfinished runs are not touched."
        ),
    )
    options.add_argument(
        "run", nargs="*", help=_("a run's or a sweep's id, or any unique beginning of it (default: all)")
    )
    options.add_argument("--yes", action="store_true", help=_("delete without asking"))
    options.add_argument(
        "--pulls", type=float, metavar=_("DAYS"),
        help=_("also delete runs that truba pull copied here and has not updated for this many days"),
    )  # fmt: skip
    given = options.parse_args(arguments)
    found = _found(given.run, given.runs, given.pulls)
    if given.json:
        print_json({"deleted": given.yes, "freed": [_as_json(one) for one in found]})
    else:
        _show(found)
        if given.pulls is None and not given.run:
            _point_at_pulls(given.runs)
    if found and (given.yes or (not given.json and _agreed())):
        for one in found:
            one.delete()
        if not given.json:
            print(_("freed {size:,.1f} MB", size=sum(one.size_bytes for one in found) / 1e6))
    return 0


def _found(prefixes: Sequence[str], runs_folder: Path | None, pull_days: float | None) -> list[Freed]:
    runs = _runs(prefixes, runs_folder)
    going: list[RunDir] = []
    if pull_days is not None:
        _refuse_negative(pull_days)
        among = {run.path for prefix in prefixes for run in _named(prefix, runs_folder)}
        old = pulled_copies.older_than(pull_days, runs_folder)
        going = [one for one in old if (not prefixes or one.path in among) and private.is_mine(one.path)]
    found = [freed for run in runs if run not in going and (freed := _of_run(run)) is not None]
    found += [_of_pull(run) for run in going]
    if not prefixes:
        folders = [runs_folder] if runs_folder else runs_folders.folders()
        found += [freed for folder in folders if (freed := _of_code(folder, going)) is not None]
    return found


def _refuse_negative(days: float) -> None:
    if not days >= 0:
        raise Refused(
            Problem(f"--pulls {days:g}", _("it is a number of days, 0 or more."), _("For example --pulls 30."))
        )


def _named(prefix: str, runs_folder: Path | None) -> list[RunDir]:
    if sweep := runs_folders.find_sweep(prefix, runs_folder):
        return [sweep.run(member.run) for member in sweep.members()]
    return [runs_folders.find(prefix, runs_folder)]


def _runs(prefixes: Sequence[str], runs_folder: Path | None) -> list[RunDir]:
    """Return the finished runs among the named ones, or among all.

    Raises:
        Refused: a named run is not finished.
    """
    if not prefixes:
        return [run for run in _sound(runs_folders.runs(runs_folder)) if run.result()]
    wanted: dict[Path, RunDir] = {}
    for prefix in prefixes:
        for run in _sound(_named(prefix, runs_folder)):
            if run.result():
                wanted[run.path] = run
            elif runs_folders.find_sweep(prefix, runs_folder) is None and not run.pulled():
                rule = _("it has not finished, and needs its checkpoints to resume.")
                raise Refused(Problem(run.id, rule, _("truba status {run} shows its state.", run=run.id)))
    return list(wanted.values())


def _sound(runs: Sequence[RunDir]) -> list[RunDir]:
    """Return this user's runs with intact records; print which others are left alone."""
    say_damaged(runs)
    own = [run for run in runs if private.is_mine(run.path)]
    for run in runs:
        if run not in own:
            message = _("{run} belongs to {owner} and is left alone", run=run.id, owner=private.owner(run.path))
            print(message, file=sys.stderr)
    return damage.sound(own)


# -- what can go -------------------------------------------------------------------------------------------------


def _of_run(run: RunDir) -> Freed | None:
    """Return a run's spare checkpoints, or None. A hard link to a file that stays is counted with size 0."""
    files = archive.spare_checkpoints(run.path)
    if not files:
        return None
    sizes = (path.lstat() for path in files)
    size = sum(one.st_size for one in sizes if one.st_nlink == 1)
    shown = counted("{run}: {count} checkpoint, {size:,.1f} MB, in {folder}",
                    "{run}: {count} checkpoints, {size:,.1f} MB, in {folder}",
                    len(files), run=run.id, size=size / 1e6, folder=files[0].parent)  # fmt: skip
    return Freed(shown, {"kind": "checkpoints", "run": run.id}, files, size, partial(_unlink, files))


def _of_code(runs_folder: Path, going: Sequence[RunDir]) -> Freed | None:
    if not private.is_mine(runs_folder / CODE):
        return None
    try:
        files = archives.unneeded(runs_folder, [run.path for run in going])
    except OSError as error:
        message = _("{file} cannot be read ({why}), so no submitted code is deleted", file=error.filename,
                 why=error.strerror)  # fmt: skip
        print(message, file=sys.stderr)
        return None
    if not files:
        return None
    size = sum(path.stat().st_size for path in files)
    shown = counted("code that no run uses: {count} file, {size:,.1f} MB, in {folder}",
                    "code that no run uses: {count} files, {size:,.1f} MB, in {folder}",
                    len(files), size=size / 1e6, folder=files[0].parent)  # fmt: skip
    return Freed(shown, {"kind": "code"}, files, size, partial(archives.free, runs_folder, files))


def _of_pull(run: RunDir) -> Freed:
    files, pulled = pulled_copies.files(run), run.pulled()
    size = sum(path.lstat().st_size for path in files)
    when = time.strftime("%Y-%m-%d", time.localtime(pulled_copies.last_looked(run)))
    copy = _("the whole copy in {folder}, last pulled from {place} on {when}",
             folder=run.path, place=pulled.get("from", "?"), when=when)  # fmt: skip
    shown = counted("{run}: {copy}: {count} file, {size:,.1f} MB", "{run}: {copy}: {count} files, {size:,.1f} MB",
                    len(files), run=run.id, copy=copy, size=size / 1e6)  # fmt: skip
    about = {"kind": "pull", "run": run.id, "from": pulled.get("from"), "time": pulled_copies.last_looked(run)}
    return Freed(shown, about, files, size, partial(pulled_copies.delete, run))


def _unlink(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


# -- output ------------------------------------------------------------------------------------------------------


def _as_json(one: Freed) -> dict[str, Any]:
    return {**one.about, "bytes": one.size_bytes, "files": [str(path) for path in one.files]}


def _show(found: Sequence[Freed]) -> None:
    if not found:
        print(_("nothing to free: finished runs have no unneeded checkpoints, and there is no unused code"))
        return
    for one in found:
        print(one.shown)
    if any(one.about["kind"] == "pull" for one in found):
        print(
            _(
                "the site may have purged the originals; then these copies are all that is left (truba keep archives "
                "them)"
            )
        )
    count, size = sum(len(one.files) for one in found), sum(one.size_bytes for one in found) / 1e6
    print(counted("{count} file, {size:,.1f} MB", "{count} files, {size:,.1f} MB", count, size=size))


def _point_at_pulls(runs_folder: Path | None) -> None:
    """Print how many old pulled copies there are: they are deleted only on request, but take up space."""
    old = pulled_copies.older_than(pulled_copies.OLD_DAYS, runs_folder)
    if old:
        print(
            counted("{count} copy was last pulled more than {days} days ago: truba clean --pulls {days}",
                    "{count} copies were last pulled more than {days} days ago: truba clean --pulls {days}",
                    len(old), days=pulled_copies.OLD_DAYS)
        )  # fmt: skip


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print(_("nothing was deleted; add --yes to delete"))
        return False
    return terminal.agreed(_("delete them? [y/N] "))
