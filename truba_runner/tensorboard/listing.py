"""Which runs a pull means: told by the far end, where they lie and Slurm knows them, and understood by the near one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.code import archives
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.record_shapes import is_plain
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.search.directory import search_of
from truba_runner.search.overview import standing
from truba_runner.slurm.jobs import Job
from truba_runner.tensorboard.chosen import meant

# What the far end's line begins with: a login shell may print lines of its own before.
MARK = "truba-pull "


@dataclass(frozen=True)
class Listed:
    """What of one runs folder at the far end is meant."""

    runs_folder: str
    runs: Sequence[str]
    searches: Sequence[str]
    sweeps: Sequence[str]
    # Of the runs and searches those that may change any more.
    live: Sequence[str]
    # The archives of the code that was submitted with them.
    code: Sequence[str] = ()

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Listed:
        """As the far end told it; an older truba there says neither what is live nor what code there is."""
        runs, searches = _plain(told["runs"]), _plain(told["searches"])
        live, code = told.get("live", [*runs, *searches]), _plain(told.get("code", []))
        return cls(told["runs_folder"], runs, searches, _plain(told["sweeps"]), live, code)


def _plain(names: Sequence[Any]) -> list[str]:
    """Names of what lies in a folder itself. At the far end others may have had a hand in what is told."""
    return [name for name in names if is_plain(name)]


def listing(
    wanted: Sequence[str], runs_folder: Path | None, jobs_of: Callable[[Sequence[RunDir]], Mapping[str, Job] | None]
) -> list[dict[str, Any]]:
    """For the near end: what of each runs folder here is meant by ids, sweeps, searches or experiments.

    `jobs_of` says what Slurm knows of the jobs of runs, None where it does not answer.

    Raises:
        Refused: there is no such run.
    """
    folders: dict[Path, dict[str, Any]] = {}
    every = meant(wanted, runs_folder)
    for run in every:
        if why := damage.told(run):
            print(why, file=sys.stderr)
    runs = damage.sound(every)
    jobs = jobs_of([run for run in runs if not run.result()])
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
                # It holds the values that its runs are named by, and its table has what their finders found.
                one["sweeps"].append(sweep.id)
                one["runs"] += sorted({member.finder for member in members} - {"", *one["runs"]})
        every = [RunDir(folder / name) for name in (*one["runs"], *one["searches"])]
        one["code"] = [path.name for path in archives.code_of(every)]
    return list(folders.values())


def _may_change(run: RunDir, jobs: Mapping[str, Job] | None) -> bool:
    """Whether a run goes on, or may for all that is known."""
    if run.result() or jobs is None:
        return not run.result()
    search = search_of(run)
    state = standing(search, jobs) if search else state_of(run, jobs)
    return state.live or state.state == "UNKNOWN"


def announce(listed: Sequence[Mapping[str, Any]]) -> None:
    """Says at the far end what the near end has to know."""
    print(MARK + json.dumps(listed), flush=True)


def understood(text: str) -> list[Listed] | None:
    """What the far end announced; None where it did not."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    return [Listed.of(one) for one in json.loads(lines[-1].removeprefix(MARK))] if lines else None
