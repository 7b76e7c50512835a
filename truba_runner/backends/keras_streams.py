"""Data that is no array in memory, as batches for Keras: Datasets, PyDatasets, and functions that make them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from truba_runner.backends.keras_plan import Plan
from truba_runner.config import Train
from truba_runner.errors import Failed
from truba_runner.language import _


def is_stream(split: Any) -> bool:
    """Whether a split of `load_data` is something to iterate over, rather than arrays."""
    import keras
    import tensorflow as tf

    kinds = (tf.data.Dataset, keras.utils.PyDataset)
    return isinstance(split, kinds) or inspect.isgenerator(split) or (callable(split) and not isinstance(split, tuple))


class StreamPlan(Plan):
    """What `DataPlan` is for arrays: `begin` says which epoch an iterator that is made after it goes through.

    The batches of PyDatasets and functions of the epoch follow from its number, so that it can be gone through again;
    of a Dataset or a function without arguments only its author knows.
    """

    def __init__(self, train: Train, name: str, split: Any, devices: int, batch_size: int) -> None:
        """`steps` is 0 where their number shows only at an epoch's end. `batch_size` is for single examples.

        Raises:
            truba_runner.errors.Failed: the split cannot be iterated over, or is in batches where it should not be.
        """
        import tensorflow as tf

        super().__init__()
        self._name = name
        self._devices = devices
        self._batch_size = batch_size
        # An iteration over a Dataset has no epoch of its own; `begin` says which one comes next.
        self._epoch = 0
        self._seed = train.seed if name == "train" else None
        self._split = split
        # Keras says so at the end of the first epoch of whatever did not tell its length before.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        with tf.device("CPU:0"):
            self._all = self._in_batches(self._dataset(), train, batch_size)
        self.steps = max(0, int(self._all.cardinality()))
        self.counted = self.steps > 0

    @property
    def signature(self) -> dict[str, Any]:
        """What is known of it; which examples come when is for its author to keep."""
        return {"examples": None, "batch_size": self._batch_size, "seed": self._seed}

    def begin(self, epoch: int) -> None:
        """Says that epoch `epoch`, counted from 0, comes next."""
        self._epoch = epoch

    def _batches_from(self, step: int) -> Any:
        """Those before are made, and thrown away: a stream has no other way to get there."""
        return self._all.skip(step) if step else self._all

    def _dataset(self) -> Any:
        import keras
        import tensorflow as tf

        if isinstance(self._split, tf.data.Dataset):
            if int(self._split.cardinality()) == tf.data.INFINITE_CARDINALITY:
                raise Failed(
                    _(
                        "The Dataset that load_data returned for {name} never ends. Say how many of its elements are "
                        "an epoch with .take(N).",
                        name=self._name,
                    )
                )
            return self._split
        if isinstance(self._split, keras.utils.PyDataset):
            return self._py_dataset(self._split)
        if not callable(self._split):
            raise Failed(
                _(
                    "load_data returned for {name} a generator, which can be gone through once and not again for the "
                    "next epoch. Return the function that makes it, without calling it.",
                    name=self._name,
                )
            )
        return self._from_function(self._split)

    def _from_function(self, function: Callable[..., Any]) -> Any:
        """A function of the epoch, or of nothing, that returns an iterable of elements, called anew each epoch."""
        import tensorflow as tf

        takes_epoch = bool(inspect.signature(function).parameters)

        def elements() -> Iterator[Any]:
            made = function(self._epoch) if takes_epoch else function()
            return iter(made.as_numpy_iterator() if isinstance(made, tf.data.Dataset) else made)

        first = next(elements(), None)
        if first is None:
            raise Failed(_("The function that load_data returned for {name} yields nothing.", name=self._name))
        return tf.data.Dataset.from_generator(elements, output_signature=_signature(self._name, first))

    def _py_dataset(self, split: Any) -> Any:
        """Its batches are fetched by their number: in order, or for training in one that epoch and seed decide."""
        import tensorflow as tf

        count = split.num_batches
        if not count:
            raise Failed(
                _(
                    "The PyDataset that load_data returned for {name} does not say how many batches it has.",
                    name=self._name,
                )
            )
        signature = _signature(self._name, split[0])
        flat = tf.nest.flatten(signature)

        def numbers() -> Iterator[int]:
            return iter(self._order(int(count)))

        def fetch(number: Any) -> list[Any]:
            return [
                _array(part, spec.dtype) for part, spec in zip(tf.nest.flatten(split[int(number)]), flat, strict=True)
            ]

        def batch(number: Any) -> Any:
            parts = tf.numpy_function(fetch, [number], [spec.dtype for spec in flat])
            for part, spec in zip(parts, flat, strict=True):
                part.set_shape(spec.shape)
            return tf.nest.pack_sequence_as(signature, parts)

        order = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), tf.int64))
        known = tf.data.experimental.assert_cardinality(int(count))
        return order.apply(known).map(batch, num_parallel_calls=max(1, split.workers), deterministic=True)

    def _order(self, count: int) -> list[int]:
        from truba_runner.backends.keras_data import epoch_order

        if self._seed is None:
            return list(range(count))
        order: list[int] = epoch_order(self._seed, self._epoch, count).tolist()
        return order

    def _in_batches(self, dataset: Any, train: Train, batch_size: int) -> Any:
        import tensorflow as tf

        batched = _is_batched(dataset.element_spec)
        if batched and (train.batch_size is not None or train.batch_scaling != "global"):
            raise Failed(
                _(
                    "load_data returned batches for {name}, and their size is their author's: "
                    "train.batch_size={batch_size} and train.batch_scaling={batch_scaling} are for single examples. "
                    "Set train.batch_size=null and train.batch_scaling=global, or return single examples.",
                    name=self._name,
                    batch_size=train.batch_size,
                    batch_scaling=train.batch_scaling,
                )
            )
        if not batched and train.batch_size is None:
            raise Failed(
                _(
                    "load_data returned single examples for {name}, not batches. Set train.batch_size, for example "
                    "train.batch_size=64, or return batches, as .batch(64) makes them of a Dataset.",
                    name=self._name,
                )
            )
        if not batched:
            self.examples_per_step = batch_size
            dataset = dataset.batch(batch_size)
        if self._devices > 1:
            dataset = self._trimmed(dataset) if self._name == "train" else self._evened(dataset)
        options = tf.data.Options()
        # One process feeds every device: batches are divided among them, files are not.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)

    def _trimmed(self, dataset: Any) -> Any:
        """Batches without their last examples, where they do not divide among the devices; `DataPlan` says why."""
        import tensorflow as tf

        def size(parts: Any) -> Any:
            return tf.shape(tf.nest.flatten(parts)[0])[0]

        def trim(*parts: Any) -> Any:
            kept = size(parts) - size(parts) % self._devices
            return tf.nest.map_structure(lambda part: part[:kept], parts)

        return dataset.map(trim).filter(lambda *parts: size(parts) > 0)

    def _evened(self, dataset: Any) -> Any:
        """For evaluation nothing may be left out, but the first batch has to divide: where it does not, all shrink."""
        import tensorflow as tf

        size = next((len(tf.nest.flatten(first)[0]) for first in dataset), 0)
        if size < self._devices:
            raise Failed(
                _(
                    "{devices} devices need as many examples or more in the first batch of {name}.",
                    devices=self._devices,
                    name=self._name,
                )
            )
        return dataset.rebatch(size - size % self._devices) if size % self._devices else dataset


def run_out_safely(model: Any, plan: Any) -> None:
    """Sees to it that a stream whose length is not known can end without a trace in the model.

    Where an execution is a single step, Keras learns of the end from an error in the middle of that step, when parts of
    it that need no data have run: the optimizer has counted one step more than it made, and trains otherwise from then
    on. An execution of several steps asks before each of them.
    """
    if not plan.steps:
        model.steps_per_execution = max(2, model.steps_per_execution)


def _array(value: Any, dtype: Any) -> Any:
    import numpy as np

    return np.asarray(value, dtype=dtype.as_numpy_dtype)


def _signature(name: str, element: Any) -> Any:
    """The shapes and types of a generator's elements, from the first. Batches may have any number of examples."""
    import numpy as np
    import tensorflow as tf

    if not isinstance(element, tuple):
        raise Failed(
            _(
                "What load_data returned for {name} yields a {kind}; it has to yield tuples (x, y). Possible are a "
                "tf.data.Dataset, a keras.utils.PyDataset, or a function that returns a generator or a Dataset.",
                name=name,
                kind=type(element).__name__,
            )
        )
    arrays = [np.asarray(part) for part in tf.nest.flatten(element)]
    shapes = [array.shape for array in arrays]
    if _same_length(shapes):
        shapes = [(None, *shape[1:]) for shape in shapes]
    # Keras computes with float32, and Python's numbers are float64.
    types = [tf.float32 if array.dtype == np.float64 else tf.as_dtype(array.dtype) for array in arrays]
    specs = [tf.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    return tf.nest.pack_sequence_as(element, specs)


def _is_batched(signature: Any) -> bool:
    import tensorflow as tf

    return _same_length([tuple(spec.shape) for spec in tf.nest.flatten(signature)])


def _same_length(shapes: list[tuple[Any, ...]]) -> bool:
    """Whether these are shapes of a batch: its x and y are as long as each other, those of an example are not."""
    return all(shapes) and len({shape[0] for shape in shapes}) == 1
