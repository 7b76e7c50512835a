"""A job's data with epochs of a few steps, for a rehearsal: everything that reads it, and how, is the job's own."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.training.keras.batches.inputs import global_batch


def shortened(splits: dict[str, Any], most_steps: int, train: Train, devices: int) -> dict[str, Any]:
    """The splits with `most_steps` steps an epoch at most. `devices` counts those of all nodes."""
    batch = global_batch(train, devices)
    # With train.steps_per_epoch that is how short an epoch is, whatever is gone through.
    whole = {"train"} if train.steps_per_epoch else set()
    return {name: split if name in whole else _short(split, most_steps, batch, train) for name, split in splits.items()}


def _short(split: Any, steps: int, batch: int, train: Train) -> Any:
    import keras
    import tensorflow as tf

    # Streams are in batches of their author's where the config says nothing of theirs.
    elements = steps if train.batch_size is None else steps * batch
    if isinstance(split, tf.data.Dataset):
        return split.take(elements)
    if isinstance(split, keras.utils.PyDataset):
        return _fewer_batches(split, steps)
    if isinstance(split, tuple):
        return tf.nest.map_structure(lambda array: array[: _rows(array.shape[0], steps, batch)], split)
    return _fewer_elements(split, elements) if callable(split) and not inspect.isgenerator(split) else split


def _rows(rows: int, steps: int, batch: int) -> int:
    """So many that the last batch is as small as that of the whole: some networks take batches of one size alone."""
    return rows if rows <= steps * batch else (steps - 1) * batch + (rows % batch or batch)


def _fewer_batches(split: Any, steps: int) -> Any:
    """The same object, with its author's attributes and methods, but for its length."""
    if (count := split.num_batches) and count > steps:
        # Of the author's module still, whose objects' state is looked for.
        own = {"__module__": type(split).__module__}
        short = {**own, "__len__": lambda self: steps, "num_batches": property(lambda self: steps)}
        split.__class__ = type(type(split).__name__, (type(split),), short)
    return split


def _fewer_elements(function: Callable[..., Any], elements: int) -> Callable[..., Any]:
    import tensorflow as tf

    # It is asked whether it takes the epoch's number.
    @functools.wraps(function)
    def first(*given: Any) -> Any:
        made = function(*given)
        return made.take(elements) if isinstance(made, tf.data.Dataset) else itertools.islice(iter(made), elements)

    return first
