"""What a framework offers so that a job can be trained with it: a module a backend, with `train` and `find`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import IO, Any

from truba_runner.config import Experiment
from truba_runner.interrupt import Interruption
from truba_runner.progress import Progress
from truba_runner.rundir import RunDir


@dataclass(frozen=True)
class Traits:
    """What the plan must know of a backend without importing it."""

    # A task is one process: one a node with all of its GPUs, or one a GPU.
    task_per_gpu: bool
    multi_node: bool
    # Whether a training's rates are made for its length, so that the last epoch's model is what it comes to.
    last_epoch_counts: bool = False
    # Packages that it cannot do without, and the oldest versions that it was tried with.
    needs: Mapping[str, str] = field(default_factory=dict)


TRAITS = {
    "keras": Traits(task_per_gpu=False, multi_node=True, needs={"tensorflow": "2.18", "keras": "3.6"}),
    "fastai": Traits(
        task_per_gpu=True, multi_node=True, last_epoch_counts=True, needs={"torch": "2.6", "fastai": "2.8"}
    ),
}


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
    # What could not be made of a training that is over, and why: `backends.notes` fills it, the result names it.
    notes: list[str] = field(default_factory=list)
    # Of an epoch and of a validation, for a rehearsal; None: all that the data has.
    most_steps: int | None = None


Entry = Callable[[Context], dict[str, Any]]


def imports(name: str) -> tuple[str, ...]:
    """The modules that a backend imports anyway; they are imported once, where many trainings are forked from."""
    found: tuple[str, ...] = getattr(importlib.import_module(f"truba_runner.backends.{name}"), "IMPORTS", ())
    return found


def load(name: str, entry: str = "train") -> Entry:
    """An entry of a backend's; it returns what `result.json` should say.

    `train` trains, evaluates and saves. The result holds `metrics` (final, by name), `seconds_training`, `epochs`,
    `steps`, `weights_sha256`, `devices`, where a finder's rate was taken `lr_find`, and where something is missing
    `notes`. `find` runs a learning-rate
    finder alone, and leaves its curve in the run directory. The result holds `suggestions`, `seconds`, `devices`.
    """
    found: Entry = getattr(importlib.import_module(f"truba_runner.backends.{name}"), entry)
    return found


def reader(name: str) -> Callable[[IO[bytes]], Any]:
    """What reads a backend's checkpoints: as plain values, arrays and tensors, in lists, tuples and dicts."""
    found: Callable[[IO[bytes]], Any] = importlib.import_module(f"truba_runner.backends.{name}").read_state
    return found
