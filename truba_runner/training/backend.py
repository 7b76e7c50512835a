"""What a framework offers so that a job can be trained with it: `training/NAME/train.py`, with `train` and `find`."""

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
    """All that a backend is given."""

    experiment: Experiment
    # The module of `jobs/` that the experiment names.
    job: ModuleType
    run: RunDir
    progress: Progress
    # Looked at between two steps; once it is set, the backend saves and raises `Interrupted`.
    interruption: Interruption = field(default_factory=Interruption)
    # This process among `tasks` of the job; rank 0 writes the run's records.
    rank: int = 0
    tasks: int = 1
    # Filled by a backend whose job asks for hyperparameters: their space and values, as Keras Tuner writes them.
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    # What could not be made of a training that is over, and why: `training.notes` fills it, the result names it.
    notes: list[str] = field(default_factory=list)
    # Of an epoch and of a validation, for a rehearsal; None: all that the data has.
    most_steps: int | None = None


Entry = Callable[[Context], dict[str, Any]]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"truba_runner.training.{name}.train")


def imports(name: str) -> tuple[str, ...]:
    """The modules that a backend imports anyway; they are imported once, where many trainings are forked from."""
    found: tuple[str, ...] = getattr(_module(name), "IMPORTS", ())
    return found


def load(name: str, entry: str = "train") -> Entry:
    """An entry of a backend's; it returns what `result.json` should say.

    `train` trains, evaluates and saves. The result holds `metrics` (final, by name), `seconds_training`, `epochs`,
    `steps`, `weights_sha256`, `devices`, where a finder's rate was taken `lr_find`, and where something is missing
    `notes`. `find` runs a learning-rate
    finder alone, and leaves its curve in the run directory. The result holds `suggestions`, `seconds`, `devices`.
    """
    found: Entry = getattr(_module(name), entry)
    return found


def reader(name: str) -> Callable[[IO[bytes]], Any]:
    """What reads a backend's checkpoints: as plain values, arrays and tensors, in lists, tuples and dicts."""
    found: Callable[[IO[bytes]], Any] = _module(name).read_state
    return found
