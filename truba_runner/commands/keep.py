"""`truba keep RUN…`: archive results, best checkpoint, code, config and plots to home, which is never purged."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truba_runner.code import archives, secret_files
from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused, listed
from truba_runner.keeping import archive
from truba_runner.language import _, counted
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.search.overview import standing_of
from truba_runner.status.printing import print_json
from truba_runner.status.rows import say_damaged
from truba_runner.status.slurm_jobs import known_jobs_or_records


def main(arguments: Sequence[str]) -> int:
    """Write an archive for each run, and one for all runs of a sweep."""
    options = parser(
        "keep",
        _(
            "Archives each run as one file with checksums: records, plots, model, best checkpoint, event files and "
            "the submitted code. Checkpoints that a finished run no longer needs are left out."
        ),
    )
    options.add_argument("run", nargs="+", help=_("a run's, a search's or a sweep's id, or any unique beginning of it"))
    options.add_argument(
        "--to", type=Path, default=Path.home() / "truba_runner" / "kept", metavar=_("FOLDER"),
        help=_("where the archives go (default: %(default)s)"),
    )  # fmt: skip
    given = options.parse_args(arguments)
    # Check all names before writing the first archive: a misspelt one should not be reported an hour later.
    wanted = {one[0]: one for one in (_wanted(prefix, given.runs) for prefix in given.run)}
    kept, failures = [], []
    for run in wanted.values():
        try:
            kept.append(_kept(*run, given.to.expanduser().resolve()))
        except Failed as failed:  # Still archive the others.
            failures.append(failed)
    if given.json:
        print_json(kept)
    else:
        for one in kept:
            files = counted("{count} file", "{count} files", one["files"])
            size = _("{size:,.1f} MB", size=one["bytes"] / 1e6)
            print(f"{one['file']}  {size}, {files}, SHA-256 {one['sha256']}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _kept(name: str, root: Path, files: Sequence[Path], target: Path) -> dict[str, Any]:
    file = target / f"{name}.tar"
    if not files:
        raise Failed("{run} no longer exists", run=name)
    try:
        digest = archive.write(file, root, files)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (there := _without_gone(root, files)) != files:
            return _kept(name, root, there, target)
        why = error.strerror or str(error)
        raise Failed(
            "{file} could not be written ({why}{of}), and the incomplete file was deleted. Free some space, or name "
            "another folder with --to FOLDER.",
            file=file,
            why=why,
            of=f": {error.filename}" if error.filename else "",
        ) from error
    return {"run": name, "file": str(file), "bytes": file.stat().st_size, "files": len(files), "sha256": digest}


def _without_gone(root: Path, files: Sequence[Path]) -> Sequence[Path]:
    """Return the files of runs that still exist; print which are gone."""
    names = dict.fromkeys(path.relative_to(root).parts[0] for path in files)
    gone = [name for name in names if not os.path.lexists(root / name)]
    for name in gone if len(gone) < len(names) else []:
        print(_("{run} no longer exists", run=name), file=sys.stderr)
    return [path for path in files if path.relative_to(root).parts[0] not in gone]


def _wanted(prefix: str, runs_folder: Path | None) -> tuple[str, Path, list[Path]]:
    """Return the archive's name, the folder that its paths are relative to, and its files."""
    if sweep := runs_folders.find_sweep(prefix, runs_folder):
        names = (name for member in sweep.members() for name in (member.run, member.finder) if name)
        every = [run for name in dict.fromkeys(names) if (run := sweep.run(name)).path.is_dir()]
        say_damaged(every)
        runs = damage.sound(every)
        _refuse_live(runs)
        files = [path for folder in (sweep.path, *(run.path for run in runs)) for path in archive.kept_files(folder)]
        return sweep.id, sweep.runs_folder, [*_without_secrets(sweep.runs_folder, files), *archives.code_of(runs)]
    run = runs_folders.find(prefix, runs_folder)
    if why := damage.described(run):
        message = _("{why}. The run was not archived; copy its folder, {folder}, to keep it as it is.")
        raise Failed(message.format(why=why, folder=run.path))
    _refuse_live([run])
    files = _without_secrets(run.path.parent, archive.kept_files(run.path))
    return run.id, run.path.parent, [*files, *archives.code_of([run])]


def _without_secrets(root: Path, files: Sequence[Path]) -> list[Path]:
    """Return the files that do not look like secrets; print the others."""
    secret = set(secret_files.found((path.relative_to(root).as_posix(), path) for path in files))
    if secret:
        message = _("left out, as they look like secrets: {files}", files=listed(sorted(secret)))
        print(message, file=sys.stderr)
    return [path for path in files if path.relative_to(root).as_posix() not in secret]


def _refuse_live(runs: Sequence[RunDir]) -> None:
    """Refuse runs whose files may still change.

    Raises:
        Refused: a run is pending, running or ending.
    """
    records = [run.record() for run in runs]
    jobs = known_jobs_or_records(records, finished_too=True)
    for run in records:
        state = standing_of(run, jobs)
        if state.elsewhere:
            rule = _("its job belongs to another Slurm cluster, and may still run.")
            raise Refused(Problem(run.id, rule, _("Type the command on {host}.", host=state.elsewhere)))
        if state.live or state.ending:
            rule = _("it has not ended ({state}), and only runs that have ended can be archived.", state=state.state)
            raise Refused(Problem(run.id, rule, _("truba logs -f {run} follows it until it ends.", run=run.id)))
