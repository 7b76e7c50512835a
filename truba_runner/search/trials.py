"""A trial as a run: create its directory, give it the checkpoint that it resumes from, and read its metrics."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner.config.backends import TRAITS
from truba_runner.config.schema import Experiment, Sweep
from truba_runner.config.search_space import trial_config
from truba_runner.runs.checkpoints import BEST, CheckpointStore
from truba_runner.runs.events import Event
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import hyperband_recipes, leases
from truba_runner.search.directory import SearchDir
from truba_runner.search.trial_records import values_of

# Columns of `history.csv` that are no metrics.
_NOT_METRICS = ("epoch", "stage", "first_learning_rate", "learning_rate", "seconds")


def executions(search: SearchDir, sweep: Sweep, trial_id: str, retry: int) -> list[RunDir]:
    """Return the runs of a trial's attempt number `retry`, in order."""
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
    started: Event,
) -> RunDir:
    """Create a trial's run directory, unless an earlier worker has, and record this start."""
    run, values = search.trial(trial_id, execution, retry), values_of(trials[trial_id])
    run.create()
    if not run.config_file.exists():
        past = _newest_with_result(search, values["tuner/trial_id"], execution) if "tuner/trial_id" in values else None
        if past is not None:
            _go_on_from(past, run)
        config = trial_config(experiment, values, direction, execution)
        if "tuner/epochs" in values and last_epoch_counts(experiment.job.backend):
            # A recipe's stages hold the numbers of epochs.
            config["train"].update(recipe=_recipe(config["train"], values, past), epochs=1)
        run.write_config(config)
    # Not fsynced: if a power failure loses the event, the worker that takes the trial next records its own.
    run.append_submission(started, durable=False)
    return run


def _recipe(train: Mapping[str, Any], values: Mapping[str, Any], past: RunDir | None) -> list[Any]:
    """Return a Hyperband trial's recipe; `train`: the search's section; `past`: the run that the trial resumes."""
    epochs = int(values["tuner/epochs"])
    if past is None:
        return hyperband_recipes.first(train["recipe"], epochs)
    more = epochs - int(values["tuner/initial_epoch"])
    return hyperband_recipes.promoted(past.read_config()["train"]["recipe"], more, train["learning_rate"])


def last_epoch_counts(backend: str) -> bool:
    """Whether a trial's score is its last epoch's, and not its best epoch's."""
    return backend in TRAITS and TRAITS[backend].last_epoch_counts


def _newest_with_result(search: SearchDir, trial_id: str, execution: int) -> RunDir:
    """Return the newest of a trial's attempts that has a result; the first attempt if none has."""
    runs = [search.trial(trial_id, execution)]
    while (following := search.trial(trial_id, execution, len(runs))).exists():
        runs.append(following)
    return next((run for run in reversed(runs) if run.result()), runs[0])


def _go_on_from(past: RunDir, run: RunDir) -> None:
    """Hard-link another run's checkpoints into a run, which takes no space.

    If a purge or a user has deleted them, the run is trained from its beginning, with the same result.
    """
    run.checkpoints.mkdir(mode=0o700, exist_ok=True)
    for file in past.checkpoints.glob("checkpoint-*.ckpt"):
        with suppress(FileExistsError):
            _link(file, run.checkpoints / file.name)


def link_best(past: RunDir, run: RunDir, epoch: int) -> None:
    """Link another run's checkpoint of the end of `epoch` into a run: the one of that name, or else the best.

    If neither exists, the run is trained from its beginning, with the same result.
    """
    name = f"checkpoint-{epoch:06d}-{0:09d}.ckpt"
    for source in (past.checkpoints / name, past.checkpoints / BEST):
        if source.exists():
            with suppress(FileExistsError):
                _link(source, run.checkpoints / name)
            return


def let_go(search: SearchDir, sweep: Sweep, trial_id: str) -> None:
    """Delete the checkpoints of all attempts of a trial that no other trial will resume."""
    retry = 0
    while retry == 0 or search.trial(trial_id, 0, retry).exists():
        for run in executions(search, sweep, trial_id, retry):
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        retry += 1


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def position(search: SearchDir, sweep: Sweep, trial_id: str, retry: int) -> list[int]:
    """Return how far a trial has come: finished executions; epochs and steps of the next execution."""
    if trial_id == leases.RESULT:
        return [0, 0, 0]
    runs = executions(search, sweep, trial_id, retry)
    done = sum(1 for run in runs if run.result())
    if done == len(runs):
        return [done, 0, 0]
    reached = CheckpointStore(runs[done].checkpoints).position()
    return [done, reached.epoch, reached.step]


def history(run: RunDir, values: Mapping[str, Any], last_alone: bool) -> dict[str, list[float]]:
    """Return a run's metrics with a value for each epoch that counts, omitting metrics that some of them lack.

    The epochs that count are those that a trial with such `values` has trained itself, or only the last one.
    """
    rows = _rows(run, values, last_alone)
    names = [name for name in (rows[0] if rows else {}) if name not in _NOT_METRICS]
    return {name: [float(row[name]) for row in rows] for name in names if all(row[name] for row in rows)}


def _rows(run: RunDir, values: Mapping[str, Any], last_alone: bool) -> list[dict[str, str]]:
    with (run.path / "history.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    after = int(values.get("tuner/initial_epoch", 0))
    return rows[-1:] if last_alone else [row for row in rows if int(row["epoch"]) > after]


def best_epoch(
    run: RunDir, objective: str, direction: str, values: Mapping[str, Any], last_alone: bool
) -> tuple[int, float]:
    """Return the epoch, counted from 1, with the best objective (the earliest of several), and that objective.

    Raises:
        KeyError: the run has no such metric.
    """
    found = [(int(row["epoch"]), float(row[objective])) for row in _rows(run, values, last_alone)]
    sign = -1 if direction == "max" else 1
    return min(found, key=lambda one: (one[1] != one[1], sign * one[1]))
