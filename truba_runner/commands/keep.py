"""`truba keep RUN…`: archives results, best checkpoint, config and plots to home, where nothing is purged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truba_runner import archive, places
from truba_runner.commands import known_jobs, parser, print_json
from truba_runner.errors import Problem, Refused
from truba_runner.rundir import RunDir
from truba_runner.search.directory import search_of
from truba_runner.search.overview import standing
from truba_runner.state import state_of


def main(arguments: Sequence[str]) -> int:
    """Writes one archive a run; of a sweep one for all of its runs."""
    options = parser(
        "keep",
        "Archives runs, as one file each, with a checksum: records, plots, model, best checkpoint, event files. "
        "Checkpoints that only going on would need are left out.",
    )
    options.add_argument("run", nargs="+", help="a run's, a search's or a sweep's id, or any unique beginning of it")
    options.add_argument(
        "--to", type=Path, default=Path.home() / "truba_runner" / "kept", metavar="FOLDER",
        help="where the archives go (default: %(default)s)",
    )  # fmt: skip
    given = options.parse_args(arguments)
    kept = [_kept(prefix, given.to.resolve(), given.runs) for prefix in given.run]
    if given.json:
        print_json(kept)
    else:
        for one in kept:
            print(f"{one['file']}  {one['bytes'] / 1e6:,.1f} MB, {one['files']} files, SHA-256 {one['sha256']}")
    return 0


def _kept(prefix: str, target: Path, runs_folder: Path | None) -> dict[str, Any]:
    name, root, files = _wanted(prefix, runs_folder)
    file = target / f"{name}.tar"
    digest = archive.write(file, root, files)
    return {"run": name, "file": str(file), "bytes": file.stat().st_size, "files": len(files), "sha256": digest}


def _wanted(prefix: str, runs_folder: Path | None) -> tuple[str, Path, list[Path]]:
    """What the archive is called, the folder that its names begin in, and its files."""
    if sweep := places.find_sweep(prefix, runs_folder):
        runs = [sweep.run(member.run) for member in sweep.members()]
        _refuse_live(runs)
        files = [path for folder in (sweep.path, *(run.path for run in runs)) for path in archive.kept_files(folder)]
        return sweep.id, sweep.runs_folder, files
    run = places.find(prefix, runs_folder)
    _refuse_live([run])
    return run.id, run.path.parent, archive.kept_files(run.path)


def _refuse_live(runs: Sequence[RunDir]) -> None:
    """What still changes cannot be archived.

    Raises:
        Refused: a run waits or trains.
    """
    jobs = known_jobs(runs)
    if jobs is None:
        print("Slurm does not answer: states are those on record", file=sys.stderr)
    for run in runs:
        state = standing(search, jobs) if (search := search_of(run)) else state_of(run, jobs)
        if state.live:
            remedy = f"truba logs -f {run.id} follows it to its end."
            raise Refused(Problem(run.id, f"it is not over ({state.state}), and only what is can be kept.", remedy))
