"""Make the row of `truba status` for a run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from truba_runner.config.durations import slurm_time
from truba_runner.runs import damage, restarts
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import ProgressRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.search import overview
from truba_runner.search.directory import search_of
from truba_runner.slurm.jobs import Job

# The keys of a row, all without a value.
EMPTY_ROW: dict[str, Any] = {
    **dict.fromkeys(("run", "state", "partition", "job_id"), ""),
    **dict.fromkeys(("epoch", "epochs", "step", "steps_per_epoch")),
    "metrics": {},
    **dict.fromkeys(("elapsed", "time_limit"), ""),
    "restarts": None,
    **dict.fromkeys(("why", "directory"), ""),
}


def damaged_row(record: RunRecord) -> dict[str, Any]:
    """Return the JSON row of a run with damaged records; empty if they are intact."""
    return damage_of(record, why) if (why := damage.of_listed(record)) else {}


def damage_of(one: RunDir | RunRecord | SweepDir, why: str) -> dict[str, str]:
    """Return the values in the row of a run or sweep whose records are damaged."""
    return {"run": one.id, "state": damage.DAMAGED, "why": why, "directory": str(one.path)}


def say_damaged(runs: Iterable[RunDir], file: TextIO | None = None) -> None:
    """Print a line for each run left out because its records are damaged, to standard error or `file`."""
    for run in runs:
        if line := damage.described(run):
            print(line, file=file or sys.stderr)


def with_sweeps_as_one(rows: Sequence[dict[str, Any]], sweeps: Sequence[SweepDir]) -> list[dict[str, Any]]:
    """Replace the rows of each sweep's runs by one row: a thousand of them would hide the other runs."""
    of: dict[tuple[Path, str], list[SweepDir]] = {}
    finders: set[Path] = set()
    for sweep in sweeps:
        for member in sweep.members():
            of.setdefault((sweep.runs_folder, member.run), []).append(sweep)
            if member.finder:
                finders.add(sweep.runs_folder / member.finder)
    shown: dict[Path, dict[str, Any]] = {}
    counts: dict[Path, Counter[str]] = {}
    for row in rows:
        path = Path(row["directory"])
        own = of.get((path.parent, path.name), [])
        # Finders are shown in their sweep's own table only.
        if not own and path not in finders:
            shown[path] = row
        for sweep in own:
            shown.setdefault(sweep.path, {**EMPTY_ROW, "run": sweep.id, "why": f"truba status {sweep.id}"})
            counts.setdefault(sweep.path, Counter())[row["state"]] += 1
    for path, states in counts.items():
        shown[path]["state"] = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return list(shown.values())


def row_or_damage(record: RunRecord, jobs: Mapping[str, Job] | None) -> dict[str, Any]:
    """Return the row of a run, also if its records are damaged: one such run must not prevent the whole table."""
    if not (damaged := damaged_row(record)):
        try:
            return row(record, jobs)
        except OSError as error:  # The run was deleted meanwhile, or its disk no longer answers.
            damaged = damage_of(record, str(error))
    return {**EMPTY_ROW, **damaged}


def row(record: RunRecord, jobs: Mapping[str, Job] | None) -> dict[str, Any]:
    """Return the row of a run or search, in JSON values. Times are in Slurm's notation."""
    if (search := search_of(record)) is not None:
        return overview.row(search, jobs)
    state = state_of(record, jobs)
    job, result, progress = state.job, record.result, record.progress
    # Slurm is not asked about finished runs: take what their last submission requested.
    asked = record.intent.request if job is None and not record.pulled else {}
    return {
        "run": record.id,
        "state": state.state,
        "partition": job.partition if job else asked.get("partition", ""),
        "job_id": record.job_id,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "steps_per_epoch": progress.steps_per_epoch,
        "metrics": result.metrics or progress.metrics,
        "elapsed": job.elapsed if job else _own_clock(progress),
        "time_limit": job.time_limit if job else slurm_time(asked["time_minutes"]) if "time_minutes" in asked else "",
        "restarts": restarts.account(record.events)["restarts"],
        "why": state.why or result.warning or progress.warning or " ".join(result.notes),
        "directory": str(record.path),
    }


def _own_clock(progress: ProgressRecord) -> str:
    if progress.updated is None or progress.started is None:
        return ""
    return time.strftime("%H:%M:%S", time.gmtime(progress.updated - progress.started))
