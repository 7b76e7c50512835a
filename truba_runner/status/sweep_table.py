"""Make the table of a sweep: for each run its swept values, its state, and the last and best value of a metric."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from truba_runner.config.recipe import FINDER, SUGGESTIONS, rate_taken
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.runs import damage
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import RateCurve
from truba_runner.runs.state import has_no_rate, state_of
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search import overview
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.slurm.jobs import Job
from truba_runner.training.plots import NOT_METRICS

SEED = "train.seed"
# Smaller is better for metrics whose name contains one of these.
_SMALL_IS_GOOD = ("loss", "error", "mse", "mae", "mape", "rmse", "perplexity")


@dataclass(frozen=True)
class Finding:
    """Result of a run's learning-rate finder; `takes` is the expression for the rate, such as valley/10."""

    finder: str
    takes: str
    state: str
    # None: the finder has not finished, or could not make that suggestion.
    rate: float | None
    # `suggestions` by name, `learning_rates` and `losses`; empty until the finder has finished.
    curve: RateCurve | None


@dataclass(frozen=True)
class Row:
    """A run or a search. `history`: its finished epochs; `metrics`: those of the result, else the latest.

    `finding` is set in a sweep whose runs get their learning rates from finders. `trials` is set only for a search: the
    numbers of finished and of begun trials.
    """

    run: str
    values: Mapping[str, Any]
    state: str
    why: str
    directory: str
    job_id: str = ""
    epoch: int | None = None
    epochs: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    finding: Finding | None = None
    trials: tuple[int, int] | None = None

    def last(self, metric: str) -> float | None:
        """Return the metric's final or, so far, latest value."""
        if metric in self.metrics:
            return self.metrics[metric]
        return next((row[metric] for row in reversed(self.history) if metric in row), None)

    def best(self, metric: str, mode: str) -> tuple[float, int] | None:
        """Return the metric's best value and its epoch, from 1; epoch 0 if only the result has this metric."""
        found = [(row[metric], int(row["epoch"])) for row in self.history if not math.isnan(row.get(metric, math.nan))]
        if not found and (last := self.metrics.get(metric)) is not None and not math.isnan(last):
            found = [(last, 0)]
        pick = min if mode == "min" else max
        return pick(found, key=lambda pair: pair[0]) if found else None


@dataclass(frozen=True)
class Table:
    """The rows of a sweep, in the order of its command line. `mode`: min or max, whichever is better for `metric`."""

    sweep: str
    keys: Sequence[str]
    rows: Sequence[Row]
    metric: str
    mode: str

    @property
    def finds(self) -> bool:
        """Whether runs get their learning rates from finders."""
        return any(row.finding for row in self.rows)

    @property
    def has_searches(self) -> bool:
        """Whether some rows are searches."""
        return any(row.trials for row in self.rows)

    def best(self, row: Row) -> float | None:
        """Return the best value of the table's metric in a run; None if it has none."""
        found = row.best(self.metric, self.mode)
        return found[0] if found else None

    def sorted_by(self, column: str) -> list[Row]:
        """Sort by a swept key, by state, or else by the table's metric, best first; runs without a value come last."""
        if column in self.keys:
            return sorted(self.rows, key=lambda row: _order(row.values.get(column)))
        if column == "state":
            return sorted(self.rows, key=lambda row: row.state)
        sign = 1 if self.mode == "min" else -1
        return sorted(self.rows, key=lambda row: _order(None if (best := self.best(row)) is None else sign * best))

    def over_seeds(self) -> list[dict[str, Any]]:
        """Return statistics of the metric over each group of runs that differ only in the seed.

        Keys: `values`, `runs`, and for `last` and `best` each the `mean`, the sample standard deviation `spread` (None
        for a single run), `least` and `most`.
        """
        groups: dict[tuple[Any, ...], list[Row]] = {}
        others = [key for key in self.keys if key != SEED]
        for row in self.rows:
            groups.setdefault(tuple(row.values.get(key) for key in others), []).append(row)
        return [
            {
                "values": dict(zip_equal(others, values)),
                "runs": len(rows),
                "last": _spread([row.last(self.metric) for row in rows]),
                "best": _spread([self.best(row) for row in rows]),
            }
            for values, rows in groups.items()
        ]


def table(
    sweep: SweepDir,
    jobs: Mapping[str, Job] | None,
    metric: str = "",
    mode: str = "",
    instead: Sequence[str] = (),
) -> Table:
    """Make the table of a sweep from the records of its runs; `jobs` is what Slurm knows of them.

    The default of `metric` is the one by which the sweep's best checkpoint is chosen or, if no run has it, the first
    known one. `instead`: other valid names, to suggest for a misspelt one.

    Raises:
        Refused: no run has such a metric.
    """
    about = sweep.description()
    rows = [_row(sweep, member, jobs) for member in sweep.members()]
    known = list(dict.fromkeys(name for row in rows for name in (*row.metrics, *_columns(row))))
    if metric and known and metric not in known:
        rule = _("no run of {sweep} has such a metric.", sweep=sweep.id)
        if instead:
            rule = _("no run of {sweep} has such a column.", sweep=sweep.id)
        raise Refused(Problem(metric, rule, nearest(metric, [*known, *instead])))
    monitor = str(about.get("monitor", ""))
    chosen = metric or (monitor if monitor in known or not known else known[0])
    if not mode:
        # A search's mode may be empty if Keras knows the metric.
        mode = str(about.get("mode", "min")) if chosen == monitor else ""
    return Table(sweep.id, about.get("keys", []), rows, chosen, mode or direction(chosen))


def direction(metric: str) -> str:
    """Guess from a metric's name whether small (min) or large (max) values are better."""
    return "min" if any(word in metric.lower() for word in _SMALL_IS_GOOD) else "max"


def as_csv(shown: Table, rows: Sequence[Row]) -> str:
    """Format the rows as CSV: the swept values, the state, the metric, and all metrics of the results."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    rates = ["found_rate", *(f"lr_find_{name}" for name in SUGGESTIONS)] if shown.finds else []
    own = ["run", *shown.keys, *rates, "state", "epoch", f"last_{shown.metric}", f"best_{shown.metric}", "best_epoch"]
    own += ["trials_told", "trials_begun"] if shown.has_searches else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*own, *metrics, "why", "directory"])
    for row in rows:
        best, epoch = row.best(shown.metric, shown.mode) or (None, None)
        writer.writerow(
            [
                row.run,
                *(row.values.get(key) for key in shown.keys),
                *(_found(row.finding) if rates else ()),
                row.state,
                row.epoch,
                row.last(shown.metric),
                best,
                epoch,
                *((row.trials or (None, None)) if shown.has_searches else ()),
                *(row.metrics.get(name) for name in metrics),
                row.why,
                row.directory,
            ]
        )
    return text.getvalue()


def _found(finding: Finding | None) -> list[float | None]:
    suggestions = finding.curve.suggestions if finding and finding.curve else {}
    return [finding.rate if finding else None, *(suggestions.get(name) for name in SUGGESTIONS)]


def _finding(record: RunRecord, member: Member, finder: RunRecord, jobs: Mapping[str, Job] | None) -> Finding:
    curve = None if damage.of_record(finder) else finder.rate_curve(FINDER)
    rate = record.found_rate.learning_rate
    if rate is None and curve:
        with suppress(ValueError):  # The sweep's record may be damaged.
            rate = rate_taken(member.takes, curve.suggestions)
    return Finding(finder.id, member.takes, state_of(finder, jobs).state, rate, curve)


def _row(sweep: SweepDir, member: Member, jobs: Mapping[str, Job] | None) -> Row:
    run = sweep.run(member.run)
    record = run.record()
    finder = record.of(member.finder) if member.finder else None
    if why := run.path.exists() and damage.of_record(record):
        return Row(run.id, member.values, damage.DAMAGED, why, str(run.path))
    if (search := search_of(run)) is not None:
        return _search_row(search, member.values, jobs)
    state, progress = state_of(record, jobs), record.progress
    if finder and not run.exists():
        # Without Slurm, the run is created only after its finder has finished.
        waits = _("waits for its learning-rate finder {finder}", finder=finder.id)
        state = replace(state, why=has_no_rate(finder, jobs) or waits)
    metrics = record.result.metrics or progress.metrics
    return Row(
        run=run.id,
        values=member.values,
        state=state.state,
        job_id=record.job_id,
        epoch=progress.epoch,
        epochs=progress.epochs,
        metrics={name: _number(value) for name, value in metrics.items()},
        history=_history(record),
        why=state.why,
        directory=str(run.path),
        finding=_finding(record, member, finder, jobs) if finder else None,
    )


def _search_row(search: SearchDir, values: Mapping[str, Any], jobs: Mapping[str, Job] | None) -> Row:
    row = overview.row(search, jobs)
    return Row(
        run=search.id,
        values=values,
        **{key: row[key] for key in ("state", "why", "directory", "job_id")},
        metrics={name: _number(value) for name, value in row["metrics"].items()},
        trials=(row["trials_told"], row["trials_begun"]),
    )


def _history(record: RunRecord) -> list[dict[str, float]]:
    return [{name: _number(value) for name, value in row.items() if value} for row in record.history]


def _number(value: Any) -> float:
    """Convert a metric to a number; null in JSON, which stands for NaN, becomes NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _columns(row: Row) -> list[str]:
    return [name for name in (row.history[0] if row.history else ()) if name not in NOT_METRICS]


def _order(value: Any) -> tuple[int, float, str]:
    """Sort key: numbers by size, then strings, then missing values and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (2, 0.0, "")
    return (0, float(value), "") if isinstance(value, (bool, int, float)) else (1, 0.0, str(value))


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    found = [value for value in values if value is not None and not math.isnan(value)]
    if not found:
        return {"mean": None, "spread": None, "least": None, "most": None}
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "spread": spread, "least": min(found), "most": max(found)}
