"""A trial as a run: its directory is made, begun with what it goes on from, and read when it has ended."""

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
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import hyperband_recipes, leases
from truba_runner.search.directory import SearchDir
from truba_runner.search.trial_records import values_of

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
        past = _told_run(search, values["tuner/trial_id"], execution) if "tuner/trial_id" in values else None
        if past is not None:
            _go_on_from(past, run)
        config = trial_config(experiment, values, direction, execution)
        if "tuner/epochs" in values and last_epoch_counts(experiment.job.backend):
            # Of a recipe the stages say how long they are.
            config["train"].update(recipe=_recipe(config["train"], values, past), epochs=1)
        run.write_config(config)
    # Lost with the machine's power, it is told again by whoever takes the trial then.
    run.append_submission({"event": "leased", **started}, durable=False)
    return run


def _recipe(train: Mapping[str, Any], values: Mapping[str, Any], past: RunDir | None) -> list[Any]:
    """That of a trial of Hyperband's; `train`: what the search says of it; `past`: what the trial goes on from."""
    epochs = int(values["tuner/epochs"])
    if past is None:
        return hyperband_recipes.first(train["recipe"], epochs)
    more = epochs - int(values["tuner/initial_epoch"])
    return hyperband_recipes.promoted(past.read_config()["train"]["recipe"], more, train["learning_rate"])


def last_epoch_counts(backend: str) -> bool:
    """Whether a trial is judged by its last epoch, and not by its best."""
    return backend in TRAITS and TRAITS[backend].last_epoch_counts


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
    """Gives a run the checkpoint of another that was written at the end of `epoch`: the newest, or else the best.

    Where neither is kept the run is trained from its beginning, and ends the same.
    """
    name = f"checkpoint-{epoch:06d}-{0:09d}.ckpt"
    for source in (past.checkpoints / name, past.checkpoints / BEST):
        if source.exists():
            with suppress(FileExistsError):
                _link(source, run.checkpoints / name)
            return


def let_go(search: SearchDir, sweep: Sweep, trial_id: str) -> None:
    """Takes the checkpoints of a trial away, of all of its attempts: nobody will go on from them."""
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
    """How far a trial has come: executions that are done, epochs and steps of the next one."""
    if trial_id == leases.RESULT:
        return [0, 0, 0]
    runs = executions(search, sweep, trial_id, retry)
    done = sum(1 for run in runs if run.result())
    if done == len(runs):
        return [done, 0, 0]
    reached = CheckpointStore(runs[done].checkpoints).position()
    return [done, reached.epoch, reached.step]


def history(run: RunDir, values: Mapping[str, Any], last_alone: bool) -> dict[str, list[float]]:
    """A run's metrics, a value for each epoch that its score may come from; those that not all have are left out.

    These are the epochs that a trial with such `values` has trained itself, or its last one alone.
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
    """The epoch, counted from 1, whose objective is the best, the earliest of several, and that objective.

    Raises:
        KeyError: the run has no such metric.
    """
    found = [(int(row["epoch"]), float(row[objective])) for row in _rows(run, values, last_alone)]
    sign = -1 if direction == "max" else 1
    return min(found, key=lambda one: (one[1] != one[1], sign * one[1]))
