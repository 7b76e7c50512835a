"""A sweep as a table: a row a run, with its swept values, its state and what a metric was at last and at its best."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config.recipe import FINDER, SUGGESTIONS, rate_taken
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.runs import damage, record_files
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import has_no_rate, last_job_id, progress_of, state_of
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search import overview
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.slurm.jobs import Job
from truba_runner.training.plots import NOT_METRICS

SEED = "train.seed"
# A metric whose name has one of these in it is better when it is smaller.
_SMALL_IS_GOOD = ("loss", "error", "mse", "mae", "mape", "rmse", "perplexity")


@dataclass(frozen=True)
class Finding:
    """What a run's learning-rate finder has come to; `takes` is which suggestion becomes the rate (valley/10)."""

    finder: str
    takes: str
    state: str
    # None: it has not ended, or has nothing to suggest that way.
    rate: float | None
    # `suggestions` by name, `learning_rates` and `losses`; empty until it has ended.
    curve: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One run, or a search. `history` holds its finished epochs, `metrics` what it came to, or has come to so far.

    `finding` is there in a sweep whose runs have their learning rates from finders. `trials`, of a search alone: how
    many are told, and how many were begun.
    """

    run: str
    values: Mapping[str, Any]
    state: str
    job_id: str
    epoch: int | None
    epochs: int | None
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    why: str
    directory: str
    finding: Finding | None = None
    trials: tuple[int, int] | None = None

    def last(self, metric: str) -> float | None:
        """The metric's value at the end, or for now."""
        if metric in self.metrics:
            return self.metrics[metric]
        return next((row[metric] for row in reversed(self.history) if metric in row), None)

    def best(self, metric: str, mode: str) -> tuple[float, int] | None:
        """The metric's best value over the finished epochs, and in which, from 1; 0 where it is the result's alone."""
        found = [(row[metric], int(row["epoch"])) for row in self.history if not math.isnan(row.get(metric, math.nan))]
        if not found and (last := self.metrics.get(metric)) is not None and not math.isnan(last):
            found = [(last, 0)]
        pick = min if mode == "min" else max
        return pick(found, key=lambda pair: pair[0]) if found else None


@dataclass(frozen=True)
class Table:
    """The rows of a sweep, in the order of its command line. `mode` is min or max: which end of `metric` is good."""

    sweep: str
    keys: Sequence[str]
    rows: Sequence[Row]
    metric: str
    mode: str

    @property
    def finds(self) -> bool:
        """Whether runs have their learning rates from finders."""
        return any(row.finding for row in self.rows)

    @property
    def has_searches(self) -> bool:
        """Whether some of its runs are searches."""
        return any(row.trials for row in self.rows)

    def best(self, row: Row) -> float | None:
        """The best value of the table's metric in a run."""
        found = row.best(self.metric, self.mode)
        return found[0] if found else None

    def sorted_by(self, column: str) -> list[Row]:
        """By a swept key, the state, or with the best first by the table's metric; runs without a value come last."""
        if column in self.keys:
            return sorted(self.rows, key=lambda row: _order(row.values.get(column)))
        if column == "state":
            return sorted(self.rows, key=lambda row: row.state)
        sign = 1 if self.mode == "min" else -1
        return sorted(self.rows, key=lambda row: _order(None if (best := self.best(row)) is None else sign * best))

    def over_seeds(self) -> list[dict[str, Any]]:
        """For each choice of the other values, the metric over the runs that differ in the seed alone.

        Keys: `values`, `runs`, and for `last` and `best` each the `mean`, the sample standard deviation `spread` (None
        of a single run), `least` and `most`.
        """
        groups: dict[tuple[Any, ...], list[Row]] = {}
        others = [key for key in self.keys if key != SEED]
        for row in self.rows:
            groups.setdefault(tuple(row.values.get(key) for key in others), []).append(row)
        return [
            {
                "values": dict(zip(others, values, strict=True)),
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
    """Looks at every run, or search, of a sweep; `jobs` is what Slurm knows of them.

    Without `metric` it is the one that the sweep's best checkpoint goes by, or where no run has that its first.
    `instead`: other names that could have been meant.

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
        # Of a search it is empty where Keras knows it.
        mode = str(about.get("mode", "min")) if chosen == monitor else ""
    return Table(sweep.id, about.get("keys", []), rows, chosen, mode or direction(chosen))


def direction(metric: str) -> str:
    """Whether a metric is good when it is small (min) or large (max), by its name."""
    return "min" if any(word in metric.lower() for word in _SMALL_IS_GOOD) else "max"


def as_csv(shown: Table, rows: Sequence[Row]) -> str:
    """The table for other programs: the swept values, the state, the metric, and all that the results hold."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    found = ["found_rate", *(f"lr_find_{name}" for name in SUGGESTIONS)] if shown.finds else []
    own = ["run", *shown.keys, *found, "state", "epoch", f"last_{shown.metric}", f"best_{shown.metric}", "best_epoch"]
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
                *(_found(row.finding) if found else ()),
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
    suggestions = finding.curve.get("suggestions", {}) if finding else {}
    return [finding.rate if finding else None, *(suggestions.get(name) for name in SUGGESTIONS)]


def _finding(run: RunDir, member: Member, finder: RunDir, jobs: Mapping[str, Job] | None) -> Finding:
    curve = {} if damage.of_run(finder) else finder.rate_curve(FINDER)
    rate = run.found_rate().get("learning_rate")
    if rate is None and curve:
        with suppress(ValueError):  # The sweep's record may say anything.
            rate = rate_taken(member.takes, curve["suggestions"])
    return Finding(finder.id, member.takes, state_of(finder, jobs).state, rate, curve)


def _row(sweep: SweepDir, member: Member, jobs: Mapping[str, Job] | None) -> Row:
    run, finder = sweep.run(member.run), sweep.run(member.finder) if member.finder else None
    if why := run.path.exists() and damage.of_run(run):
        return _damaged_row(run, member.values, why)
    if (search := search_of(run)) is not None:
        return _search_row(search, member.values, jobs)
    state, progress = state_of(run, jobs), progress_of(run)
    if finder and not run.exists():
        # Here, without Slurm, it begins only when its finder is done.
        waits = _("waits for its learning-rate finder {finder}", finder=finder.id)
        state = replace(state, why=has_no_rate(finder, jobs) or waits)
    metrics = run.result().get("metrics") or progress.get("metrics") or {}
    return Row(
        run=run.id,
        values=member.values,
        state=state.state,
        job_id=last_job_id(run),
        epoch=progress.get("epoch"),
        epochs=progress.get("epochs"),
        metrics={name: _number(value) for name, value in metrics.items()},
        history=_history(run),
        why=state.why,
        directory=str(run.path),
        finding=_finding(run, member, finder, jobs) if finder else None,
    )


def _damaged_row(run: RunDir, values: Mapping[str, Any], why: str) -> Row:
    return Row(
        run=run.id,
        values=values,
        state=damage.DAMAGED,
        job_id="",
        epoch=None,
        epochs=None,
        metrics={},
        history=(),
        why=why,
        directory=str(run.path),
    )


def _search_row(search: SearchDir, values: Mapping[str, Any], jobs: Mapping[str, Job] | None) -> Row:
    told = overview.row(search, jobs)
    return Row(
        run=search.id,
        values=values,
        state=told["state"],
        job_id=told["job_id"],
        epoch=None,
        epochs=None,
        metrics={name: _number(value) for name, value in told["metrics"].items()},
        history=(),
        why=told["why"],
        directory=told["directory"],
        trials=(told["trials_told"], told["trials_begun"]),
    )


def _history(run: RunDir) -> list[dict[str, float]]:
    rows = record_files.history(run.path / "history.csv")
    return [{name: _number(value) for name, value in row.items() if value} for row in rows]


def _number(value: Any) -> float:
    """A metric as a number; NaN for one that became none, which JSON has as null."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _columns(row: Row) -> list[str]:
    return [name for name in (row.history[0] if row.history else ()) if name not in NOT_METRICS]


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words, then nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (2, 0.0, "")
    return (0, float(value), "") if isinstance(value, (bool, int, float)) else (1, 0.0, str(value))


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    found = [value for value in values if value is not None and not math.isnan(value)]
    if not found:
        return {"mean": None, "spread": None, "least": None, "most": None}
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "spread": spread, "least": min(found), "most": max(found)}
