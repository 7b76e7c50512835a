"""`truba status SWEEP`: show a sweep's table or its best run, as text, JSON, CSV or a picture."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner import terminal
from truba_runner.errors import Failed
from truba_runner.language import _, counted, marked
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.status.printing import print_json
from truba_runner.status.slurm_jobs import known_jobs_or_records
from truba_runner.status.sweep_plots import draw, draw_curves
from truba_runner.status.sweep_table import SEED, Finding, Row, Table, as_csv, table

# Column titles for the best value of a metric.
_ENDS = {"min": marked("smallest"), "max": marked("largest")}


def show(sweep: SweepDir, given: argparse.Namespace) -> int:
    """Print what the options ask for, and return the exit status."""
    members = sweep.members()
    names = dict.fromkeys(name for one in members for name in (one.run, one.finder) if name)
    jobs = known_jobs_or_records([sweep.run(name).record() for name in names])
    keys = sweep.description().get("keys", [])
    sorts_by_metric = given.sort and given.sort != "state" and given.sort not in keys
    metric = given.best or (given.sort if sorts_by_metric else "")
    columns = ("state", *keys) if given.sort and not given.best else ()
    shown = table(sweep, jobs, metric, given.mode or "", columns)
    rows = shown.sorted_by(given.sort) if given.sort else list(shown.rows)
    if given.best:
        rows = [_best(shown)]
    if given.plot is not None:
        _draw(sweep, shown, given.plot)
    elif given.json:
        print_json(_as_json(shown, rows))
    elif given.csv:
        sys.stdout.write(as_csv(shown, rows))
    else:
        _print(shown, rows)
    return 0


def _draw(sweep: SweepDir, shown: Table, asked_for: str) -> None:
    """Draw the picture of the metric and, if there are finders' curves, a second one of those."""
    file = Path(asked_for) if asked_for else sweep.path / f"{shown.metric}.png"
    curves = any(row.finding and row.finding.curve for row in shown.rows)
    if curves:
        print(draw_curves(shown, file.with_name(f"{file.stem}_lr_find{file.suffix}" if asked_for else "lr_find.png")))
    if not curves or any(shown.best(row) is not None for row in shown.rows):
        print(draw(shown, file))


def _best(shown: Table) -> Row:
    best = shown.sorted_by(shown.metric)[0]
    if shown.best(best) is None:
        raise Failed("no run of {sweep} has a value of {metric} yet", sweep=shown.sweep, metric=shown.metric)
    return best


def _as_json(shown: Table, rows: Sequence[Row]) -> dict[str, Any]:
    seeds = {"over_seeds": shown.over_seeds()} if SEED in shown.keys else {}
    about = {"sweep": shown.sweep, "keys": list(shown.keys), "metric": shown.metric, "mode": shown.mode}
    return {**about, **seeds, "runs": [_row_as_json(shown, row) for row in rows]}


def _row_as_json(shown: Table, row: Row) -> dict[str, Any]:
    best, epoch = row.best(shown.metric, shown.mode) or (None, None)
    return {
        "run": row.run,
        "values": dict(row.values),
        "state": row.state,
        "job_id": row.job_id,
        "epoch": row.epoch,
        "epochs": row.epochs,
        **({"trials_told": row.trials[0], "trials_begun": row.trials[1]} if row.trials else {}),
        "last": row.last(shown.metric),
        "best": best,
        "best_epoch": epoch,
        "metrics": dict(row.metrics),
        "why": row.why,
        "directory": row.directory,
        **({"lr_find": _finding_as_json(row.finding)} if row.finding else {}),
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "finder": finding.finder,
        "state": finding.state,
        "takes": finding.takes,
        "learning_rate": finding.rate,
        "suggestions": finding.curve.suggestions if finding.curve else None,
    }


def _print(shown: Table, rows: Sequence[Row]) -> None:
    states = [f"{count} {state}" for state, count in Counter(row.state for row in shown.rows).most_common()]
    runs = counted("{count} run", "{count} runs", len(shown.rows))
    print(f"{shown.sweep}: {', '.join([runs, *states])}")
    rate_heading = (_("found rate"),) if shown.finds else ()
    ends, epoch = _(_ENDS[shown.mode]), _("epoch")
    how_far, by_when = (_("trials"), ends) if shown.has_searches else (epoch, f"{ends} ({epoch})")
    headings = (_("run"), *shown.keys, *rate_heading, _("state"), how_far, shown.metric, by_when, _("why"))
    printed: list[Sequence[str]] = []
    at_the_end = _("end")
    for row in rows:
        best = row.best(shown.metric, shown.mode)
        cells = (
            row.run,
            *(_word(row.values.get(key)) for key in shown.keys),
            *((_rate(row.finding),) if rate_heading else ()),
            row.state,
            _how_far(row),
            _figure(row.last(shown.metric)),
            _figure(best[0]) + ("" if row.trials else f" ({best[1] or at_the_end})") if best else "",
            row.why,
        )
        printed.append(cells)
    terminal.print_table(headings, printed)
    if SEED in shown.keys and len(rows) == len(shown.rows):
        _print_seeds(shown)


def _how_far(row: Row) -> str:
    done, of = row.trials or (row.epoch, row.epochs)
    return "" if done is None else f"{done}/{of}"


def _print_seeds(shown: Table) -> None:
    others = [key for key in shown.keys if key != SEED]
    last, best = (_("{value}, mean ± spread", value=value) for value in (shown.metric, _(_ENDS[shown.mode])))
    headings = (*others, _("seeds"), last, _("min–max"), best)
    printed: list[Sequence[str]] = []
    for group in shown.over_seeds():
        last, best = group["last"], group["best"]
        within = "" if last["least"] is None else f"{last['least']:.4f}–{last['most']:.4f}"
        words = [_word(value) for value in group["values"].values()]
        printed.append((*words, str(group["runs"]), _mean(last), within, _mean(best)))
    print("\n" + _("over the seeds"))
    terminal.print_table(headings, printed)


def _mean(values: Mapping[str, float | None]) -> str:
    spread = "" if values["spread"] is None else f" ± {values['spread']:.4f}"
    return "" if values["mean"] is None else f"{values['mean']:.4f}{spread}"


def _rate(finding: Finding | None) -> str:
    return "" if finding is None or finding.rate is None else f"{finding.rate:.3g} ({finding.takes})"


def _figure(value: float | None) -> str:
    return "" if value is None else "nan" if math.isnan(value) else f"{value:.4f}"


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        # As typed on the command line.
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
