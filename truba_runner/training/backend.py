"""The interface of a backend: the functions `train` and `find` of `training/NAME/train.py`, and their Context."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import IO, Any

from truba_runner.config.schema import Experiment
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.interrupt import Interruption


@dataclass(frozen=True)
class Context:
    """Everything a backend gets from the worker."""

    experiment: Experiment
    # The user's module `jobs/NAME.py`, imported.
    job: ModuleType
    run: RunDir
    progress: Progress
    # Checked between steps; once a signal has come, the backend saves a checkpoint and raises `Interrupted`.
    interruption: Interruption = field(default_factory=Interruption)
    # Rank of this process among the job's `tasks` processes; rank 0 writes the run's records.
    rank: int = 0
    tasks: int = 1
    # Filled by the backend if the job's code takes hyperparameters: their space and values, in Keras Tuner's form.
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    # Outputs missing from a finished training, with reasons: filled by `training.notes`, written to the result.
    notes: list[str] = field(default_factory=list)
    # Limit on the steps of each epoch and validation, for a rehearsal (`verify`); None: no limit.
    most_steps: int | None = None


Entry = Callable[[Context], dict[str, Any]]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"truba_runner.training.{name}.train")


def imports(name: str) -> tuple[str, ...]:
    """Return the modules a backend always imports; the fork server of a search imports them once for all trials."""
    found: tuple[str, ...] = getattr(_module(name), "IMPORTS", ())
    return found


def convolution(name: str) -> Callable[[], None] | None:
    """Return the backend's function that runs a small convolution on each GPU of this process; None if it has none.

    It raises the framework's error where a GPU computes nothing, or not what it should.
    """
    found: Callable[[], None] | None = getattr(_module(name), "convolve", None)
    return found


def load(name: str, entry: str = "train") -> Entry:
    """Return the function `entry` of a backend; it takes a Context and returns the content of `result.json`.

    `train` trains, evaluates and saves. Its result has `metrics` (final, by name), `seconds_training`, `epochs`,
    `steps`, `weights_sha256`, `devices`, `lr_find` if the learning rate came from a finder, and `notes` if an output
    is missing. `find` only runs a learning-rate finder and writes its curve to the run directory. Its result has
    `suggestions`, `seconds`, `devices`.
    """
    found: Entry = getattr(_module(name), entry)
    return found


def reader(name: str) -> Callable[[IO[bytes]], Any]:
    """Return the backend's checkpoint reader; it returns plain values, arrays and tensors in lists, tuples, dicts.

    It stops where the state ends, as after a line or a pickle: the checkpoint's digest follows in the file.
    """
    found: Callable[[IO[bytes]], Any] = _module(name).read_state
    return found
