"""List the runs that a pull selects: written by truba on the login node, parsed on the user's machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.code import archives
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import is_plain
from truba_runner.runs.run_directory import RunDir
from truba_runner.search.directory import search_of
from truba_runner.search.overview import standing_of
from truba_runner.slurm.jobs import Job
from truba_runner.tensorboard.chosen import meant
from truba_runner.tensorboard.ssh import announced

# Mark of the line with the list.
MARK = "truba-pull "


@dataclass(frozen=True)
class Listed:
    """What a pull selects from one runs folder on the login node."""

    runs_folder: str
    runs: Sequence[str]
    searches: Sequence[str]
    sweeps: Sequence[str]
    # Names of the runs and searches that may still change.
    live: Sequence[str]
    # Names of the archives of the code submitted with these runs.
    code: Sequence[str] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Listed:
        """Parse one JSON object from the login node; an older truba there omits `live` and `code`."""
        runs, searches = _plain(record["runs"]), _plain(record["searches"])
        live, code = record.get("live", [*runs, *searches]), _plain(record.get("code", []))
        return cls(record["runs_folder"], runs, searches, _plain(record["sweeps"]), live, code)


def _plain(names: Sequence[Any]) -> list[str]:
    """Return the plain file names and drop paths: other users may have tampered with the list."""
    return [name for name in names if is_plain(name)]


def listing(
    wanted: Sequence[str], runs_folder: Path | None, jobs_of: Callable[[Sequence[RunRecord]], Mapping[str, Job] | None]
) -> list[dict[str, Any]]:
    """Return, for each runs folder on this machine, what ids, sweeps, searches or experiments select from it.

    `jobs_of` returns the Slurm jobs of runs, or None if Slurm does not answer.

    Raises:
        truba_runner.errors.Refused: no run, sweep or experiment has that name.
    """
    folders: dict[Path, dict[str, Any]] = {}
    every = meant(wanted, runs_folder)
    for run in every:
        if why := damage.described(run):
            print(why, file=sys.stderr)
    runs = damage.sound(every)
    jobs = jobs_of([record for record in (run.record() for run in runs) if not record.result])
    for run in runs:
        empty: dict[str, Any] = {
            "runs_folder": str(run.path.parent),
            "runs": [],
            "searches": [],
            "sweeps": [],
            "live": [],
        }
        one = folders.setdefault(run.path.parent, empty)
        one["searches" if search_of(run) else "runs"].append(run.id)
        if _may_change(run, jobs):
            one["live"].append(run.id)
    for folder, one in folders.items():
        names = {*one["runs"], *one["searches"]}
        for sweep in runs_folders.sweeps(folder):
            if members := [member for member in sweep.members() if member.run in names]:
                # TensorBoard names runs by the sweep's values; the sweep's table shows what the finder runs found.
                one["sweeps"].append(sweep.id)
                one["runs"] += sorted({member.finder for member in members} - {"", *one["runs"]})
        every = [RunDir(folder / name) for name in (*one["runs"], *one["searches"])]
        one["code"] = [path.name for path in archives.code_of(every)]
    return list(folders.values())


def _may_change(run: RunDir, jobs: Mapping[str, Job] | None) -> bool:
    """Return whether a run is live, or may be because its state is unknown."""
    if run.result() or jobs is None:
        return not run.result()
    state = standing_of(run.record(), jobs)
    return state.live or state.state == "UNKNOWN"


def understood(text: str) -> list[Listed] | None:
    """Parse the output of `truba pull --list`; None if it has no list."""
    lists = list(announced(MARK, text.splitlines()))
    return [Listed.of(one) for one in lists[-1]] if lists else None
