"""`truba usage`: print the core-hours and GPU-hours used by each experiment and sweep, and what accounts have left."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truba_runner import terminal
from truba_runner.commands import parser
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.events import SWEEPS, last_intent
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import sweep_of
from truba_runner.search.overview import jobs_on_slurm, with_jobs
from truba_runner.slurm import budget, client
from truba_runner.slurm import jobs as slurm_jobs
from truba_runner.slurm.jobs import Use
from truba_runner.status.printing import print_json
from truba_runner.status.rows import damaged_row, say_damaged
from truba_runner.status.slurm_jobs import say_that_accounting_is_silent
from truba_runner.storage import safe_files

_SECONDS_AN_HOUR = 3600


@dataclass
class _Row:
    """Usage of all runs of an experiment or a sweep."""

    kind: str
    name: str
    runs: int = 0
    starts: int = 0
    core_hours: float = 0.0
    gpu_hours: float = 0.0

    def add(self, use: Use, share: float) -> None:
        self.starts += use.starts
        self.core_hours += share * use.core_seconds / _SECONDS_AN_HOUR
        self.gpu_hours += share * use.gpu_seconds / _SECONDS_AN_HOUR


def main(arguments: Sequence[str]) -> int:
    """Print the rows, the costliest first, and the limits of the accounts that were charged."""
    options = parser(
        "usage", _("Shows the core-hours and GPU-hours of each experiment and sweep, and what the account has left.")
    )
    given = options.parse_args(arguments)
    sweepers = (sweep.sweeper for sweep in runs_folders.sweeps(given.runs))
    every = [*runs_folders.runs(given.runs), *(run for run in sweepers if safe_files.is_file(run.submissions_file))]
    # The jobs of pulled copies belong to another machine.
    runs = [run for run in damage.sound(every) if not run.pulled()]
    jobs = {run.path: jobs_on_slurm(run) for run in runs}
    try:
        used = slurm_jobs.used(job_id for ids in jobs.values() for job_id in ids)
    except client.SlurmError as error:
        say_that_accounting_is_silent(error)
        used = {}
    if any(jobs.values()) and not used:
        print(_("Slurm's accounting has no record of these runs' jobs, so they are counted as 0"), file=sys.stderr)
    rows = _rows(runs, jobs, used)
    accounts = sorted({account for run in runs if (account := _account(run))})
    left = [one for account in accounts for one in budget.limits(account)]
    if given.json:
        limits = [{"account": one.holder, "unit": budget.WORDS[one.resource], "limit": float(one.limit) / 60,
                   "left": None if one.left is None else one.left / 60} for one in left]  # fmt: skip
        damaged = [row for run in every if (row := damaged_row(run.record()))]
        print_json({"usage": [vars(row) for row in rows], "limits": limits, "damaged": damaged})
        return 0
    _print(rows)
    say_damaged(every, sys.stdout)
    for one in left:
        hours = {"used": float(one.used or 0) / 60, "limit": float(one.limit) / 60}
        print(
            _(
                "account {account}: {used:,.1f} of {limit:,.0f} {unit} used",
                account=one.holder,
                unit=budget.unit(one),
                **hours,
            )
        )
    return 0


def _account(run: RunDir) -> str:
    given = [event for one in with_jobs(run) for event in damage.submissions(one)]
    return str(last_intent(given).request.get("account") or "")


def _rows(runs: Sequence[RunDir], jobs: Mapping[Any, set[str]], used: Mapping[str, Use]) -> list[_Row]:
    sharing = Counter(job_id for ids in jobs.values() for job_id in ids)
    rows: dict[tuple[str, str], _Row] = {}
    for run in runs:
        for key in _counted_as(run):
            row = rows.setdefault(key, _Row(*key))
            row.runs += run.path.parent.parent.name != SWEEPS
            for job_id in jobs[run.path] & used.keys():
                # Runs that share a job are each charged an equal part of it.
                row.add(used[job_id], 1 / sharing[job_id])
    return sorted(rows.values(), key=lambda row: (row.kind, -row.core_hours, row.name))


def _counted_as(run: RunDir) -> list[tuple[str, str]]:
    """Return the rows to which a run adds; a sweeper's job adds only to its sweep."""
    if run.path.parent.parent.name == SWEEPS:
        return [("sweep", run.path.parent.name)]
    sweep = sweep_of(run)
    return [("experiment", run.id.rpartition("-")[0]), *([("sweep", sweep.id)] if sweep else [])]


def _print(rows: Sequence[_Row]) -> None:
    words = {"experiment": _("experiment"), "sweep": _("sweep")}
    table = [
        (
            words[row.kind],
            row.name,
            str(row.runs),
            str(row.starts),
            f"{row.core_hours:,.2f}",
            f"{row.gpu_hours:,.2f}",
        )
        for row in rows
    ]
    terminal.print_table(("", "", _("runs"), _("starts"), _("core-hours"), _("GPU-hours")), table)
