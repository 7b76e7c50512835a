"""Shorten the epochs of a job's data to a few steps for a rehearsal, which still runs all of the job's own code."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.training.keras.batches.inputs import global_batch


def shortened(splits: dict[str, Any], most_steps: int, train: Train, devices: int) -> dict[str, Any]:
    """Return the splits with at most `most_steps` steps an epoch. `devices` counts those of all nodes."""
    batch = global_batch(train, devices)
    # train.steps_per_epoch alone sets the epoch's length, whatever the data's.
    whole = {"train"} if train.steps_per_epoch else set()
    return {name: split if name in whole else _short(split, most_steps, batch, train) for name, split in splits.items()}


def _short(split: Any, steps: int, batch: int, train: Train) -> Any:
    import keras
    import tensorflow as tf

    # Without train.batch_size the elements of a stream are batches.
    elements = steps if train.batch_size is None else steps * batch
    if isinstance(split, tf.data.Dataset):
        return split.take(elements)
    if isinstance(split, keras.utils.PyDataset):
        return _fewer_batches(split, steps)
    if isinstance(split, tuple):
        return tf.nest.map_structure(lambda array: array[: _rows(array.shape[0], steps, batch)], split)
    return _fewer_elements(split, elements) if callable(split) and not inspect.isgenerator(split) else split


def _rows(rows: int, steps: int, batch: int) -> int:
    """Return how many rows to keep; the last batch keeps its size, as some networks take batches of one size alone."""
    return rows if rows <= steps * batch else (steps - 1) * batch + (rows % batch or batch)


def _fewer_batches(split: Any, steps: int) -> Any:
    """Shorten the object itself, which keeps its author's attributes and methods."""
    if (count := split.num_batches) and count > steps:
        # Keep the author's module: a walk finds state only in objects of users' classes.
        own = {"__module__": type(split).__module__}
        short = {**own, "__len__": lambda self: steps, "num_batches": property(lambda self: steps)}
        split.__class__ = type(type(split).__name__, (type(split),), short)
    return split


def _fewer_elements(function: Callable[..., Any], elements: int) -> Callable[..., Any]:
    import tensorflow as tf

    # `StreamPlan` reads from the signature whether the function takes the epoch's number.
    @functools.wraps(function)
    def first(*given: Any) -> Any:
        made = function(*given)
        return made.take(elements) if isinstance(made, tf.data.Dataset) else itertools.islice(iter(made), elements)

    return first
