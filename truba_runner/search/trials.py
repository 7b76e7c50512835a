"""A trial as a run: its directory is made, begun with what it goes on from, and read when it has ended."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner.checkpoint import BEST, CheckpointStore
from truba_runner.config import Experiment, Sweep
from truba_runner.rundir import RunDir
from truba_runner.search.directory import SearchDir
from truba_runner.search.records import values_of
from truba_runner.search.space import trial_config

# Of `history.csv`, what is no metric.
_NOT_METRICS = ("epoch", "stage", "first_learning_rate", "learning_rate", "seconds")


def executions(search: SearchDir, sweep: Sweep, trial_id: str, retry: int) -> list[RunDir]:
    """The runs of a trial, in order."""
    return [search.trial(trial_id, index, retry) for index in range(sweep.executions_per_trial)]


def prepare(
    search: SearchDir,
    experiment: Experiment,
    trials: Mapping[str, Any],
    trial_id: str,
    *,
    retry: int,
    execution: int,
    direction: str,
    started: Mapping[str, Any],
) -> RunDir:
    """Makes a trial's run directory, or finds it as an earlier worker left it, and puts this start on record."""
    run, values = search.trial(trial_id, execution, retry), values_of(trials[trial_id])
    run.create()
    if not run.config_file.exists():
        past = values.get("tuner/trial_id")
        if past is not None:
            _go_on_from(_told_run(search, past, execution), run)
        run.write_config(trial_config(experiment, values, direction, execution))
    run.append_submission({"event": "leased", **started})
    return run


def _told_run(search: SearchDir, trial_id: str, execution: int) -> RunDir:
    """The one of a trial's attempts that came to a result."""
    runs = [search.trial(trial_id, execution)]
    while (following := search.trial(trial_id, execution, len(runs))).exists():
        runs.append(following)
    return next((run for run in reversed(runs) if run.result()), runs[0])


def _go_on_from(past: RunDir, run: RunDir) -> None:
    """Gives a run the newest checkpoint of another: the same file under a second name, which takes no space.

    Where it has gone, to a purge or by hand, the run is trained from its beginning, and ends the same.
    """
    run.checkpoints.mkdir(mode=0o700, exist_ok=True)
    for file in past.checkpoints.glob("checkpoint-*.ckpt"):
        with suppress(FileExistsError):
            _link(file, run.checkpoints / file.name)


def link_best(past: RunDir, run: RunDir, epoch: int) -> None:
    """Gives a run the best checkpoint of another, which was written at the end of `epoch`."""
    best = past.checkpoints / BEST
    name = f"checkpoint-{epoch:06d}-{0:09d}.ckpt"
    with suppress(FileExistsError):
        _link(best if best.exists() else past.checkpoints / name, run.checkpoints / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def position(search: SearchDir, sweep: Sweep, trial_id: str, retry: int) -> list[int]:
    """How far a trial has come: executions that are done, epochs and steps of the next one."""
    runs = executions(search, sweep, trial_id, retry)
    done = sum(1 for run in runs if run.result())
    if done == len(runs):
        return [done, 0, 0]
    reached = CheckpointStore(runs[done].checkpoints).position()
    return [done, reached.epoch, reached.step]


def history(run: RunDir, after_epoch: int = 0) -> dict[str, list[float]]:
    """A run's metrics, a value an epoch after `after_epoch`; those that not every epoch has are left out."""
    with (run.path / "history.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["epoch"]) > after_epoch]
    names = [name for name in (rows[0] if rows else {}) if name not in _NOT_METRICS]
    return {name: [float(row[name]) for row in rows] for name in names if all(row[name] for row in rows)}


def best_epoch(run: RunDir, objective: str, direction: str, after_epoch: int = 0) -> tuple[int, float]:
    """The epoch, counted from 1, whose objective is the best, the earliest of several, and that objective.

    Raises:
        KeyError: the run has no such metric.
    """
    values = history(run, after_epoch)[objective]
    sign = -1 if direction == "max" else 1
    best = min(range(len(values)), key=lambda index: (values[index] != values[index], sign * values[index]))
    return after_epoch + best + 1, values[best]
