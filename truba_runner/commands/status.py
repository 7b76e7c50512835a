"""`truba status [RUN…]`: show the state of runs in one table; `truba status SWEEP`: show a sweep's own table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner import terminal
from truba_runner.commands import parser
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.progress import format_metrics
from truba_runner.search import overview
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.slurm.jobs import Job
from truba_runner.status import sweep_options
from truba_runner.status.printing import print_json, short
from truba_runner.status.rows import EMPTY_ROW, damage_of, row_or_damage, with_sweeps_as_one
from truba_runner.status.slurm_jobs import known_jobs_or_records


def main(arguments: Sequence[str]) -> int:
    """Print the table, newest run first; in the table of all runs, each sweep is one row."""
    options = parser(
        "status", _("Shows the state of runs, with epoch and step, metrics, time, and why one is pending or failed.")
    )
    options.add_argument(
        "run",
        nargs="*",
        help=_("a run's, a sweep's or a search's id, or any unique beginning of it (default: all runs)"),
    )
    sweep_options.add_options(options)
    given = options.parse_args(arguments)
    if len(given.run) == 1 and (sweep := runs_folders.find_sweep(given.run[0], given.runs)):
        from truba_runner.status import sweep_view

        return sweep_view.show(sweep, given)
    if sweep_options.asked(given):
        _refuse_for_search(given.run, given.runs)
        what = " ".join(given.run) or "truba status"
        known = [sweep.id for sweep in runs_folders.sweeps(given.runs)]
        raise Refused(
            Problem(what, _("these options need exactly one sweep."), nearest(given.run[0] if given.run else "", known))
        )
    runs = [runs_folders.find(prefix, given.runs) for prefix in given.run] or runs_folders.runs(given.runs)[::-1]
    records = [run.record() for run in runs]
    jobs = known_jobs_or_records(records)
    if len(given.run) == 1 and (search := search_of(runs[0])) and not damage.of_run(search):
        return _search(search, jobs, given.json)
    rows = [*(row_or_damage(one.again(), jobs) for one in records), *(_damaged_sweeps(given) if not given.run else [])]
    if given.json:
        print_json(rows)
    elif rows:
        _print_table(rows if given.run else with_sweeps_as_one(rows, runs_folders.sweeps(given.runs)))
    else:
        print(_("no runs yet; python -m truba_runner +experiment=mnist starts one"))
    return 0


def _refuse_for_search(named: Sequence[str], runs_folder: Path | None) -> None:
    """Refuse a sweep's options for a search, and name the alternatives."""
    found = [run for run in runs_folders.runs(runs_folder) if len(named) == 1 and run.id.startswith(named[0])]
    if len(found) == 1 and search_of(found[0]):
        rule = _("this is a search: its trials are listed without an option, the best first.")
        remedy = _(
            "truba best {search} -n N prints the N best trials; truba status {search} --json prints all of them as "
            "JSON.",
            search=found[0].id,
        )
        raise Refused(Problem(named[0], rule, remedy))


def _damaged_sweeps(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each sweep with damaged records, whose runs are not known."""
    every = ((sweep, damage.of_sweep(sweep.path)) for sweep in runs_folders.sweeps(given.runs))
    return [{**EMPTY_ROW, **damage_of(sweep, why)} for sweep, why in every if why]


def _search(search: SearchDir, jobs: Mapping[str, Job] | None, as_json: bool) -> int:
    """Print a search's row, its trials and its brackets; return the exit status."""
    about = {**overview.row(search, jobs), "trials": overview.trial_rows(search)}
    about["brackets"] = overview.brackets(search)
    if as_json:
        print_json(about)
        return 0
    _print_table([about])
    _print_trials(about["trials"])
    for one in about["brackets"]:
        print(_("bracket {bracket}, round {round}, {epochs} epochs: {told} of {begun} trials finished", **one))
    return 0


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = (
        _("run"), _("state"), _("partition"), _("job"), _("epoch"), _("step"), _("metrics"), _("elapsed/limit"),
        _("restarts"), _("why"),
    )  # fmt: skip
    table: list[Sequence[str]] = []
    for one in rows:
        metrics = format_metrics(_shown(one["metrics"]))
        clock = one["elapsed"] + (f"/{one['time_limit']}" if one["time_limit"] else "")
        counts = (_part(one, "epoch", "epochs"), _part(one, "step", "steps_per_epoch"))
        if "trials_told" in one:
            counts = (_("{told}/{begun} trials", told=one["trials_told"], begun=one["trials_begun"]), "")
        restarts_made = str(one["restarts"] or "")
        cells = (
            one["run"],
            one["state"],
            one["partition"],
            one["job_id"],
            *counts,
            metrics,
            clock,
            restarts_made,
            one["why"],
        )
        table.append(cells)
    terminal.print_table(columns, table)


def _print_trials(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for one in rows for name in one["values"]))
    after = (_("score"), _("epoch"), _("from"), _("worker"), _("why"))
    table: list[Sequence[str]] = []
    for one in rows:
        values = (short(one["values"].get(name, ""), "None") for name in names)
        cells = (one["trial"], one["state"], *values, short(one["score"]), _part(one, "epoch", "epochs"))
        table.append((*cells, one["goes_on_from"] or "", one["worker"], one["why"]))
    terminal.print_table((_("trial"), _("state"), *names, *after), table)


def _shown(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Select the metrics to show: those of test, else of validation, else all."""
    for prefix in ("test_", "val_"):
        if held_out := {name: value for name, value in metrics.items() if name.startswith(prefix)}:
            return held_out
    return dict(metrics)


def _part(one: Mapping[str, Any], done: str, of: str) -> str:
    # 0: the total is not known yet.
    total = one[of] if one[of] != 0 else "?"
    return f"{one[done]}/{total}" if one[done] is not None and total is not None else ""
