"""Batches from Datasets, and from functions that return Datasets or generators."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.training.keras.batches.batches import check_batching, evened, fed_whole, trimmed
from truba_runner.training.keras.batches.elements import (
    element_of,
    is_batched,
    looked_at,
    made_batches,
    owned,
    signature_of,
    with_ranks,
)
from truba_runner.training.keras.batches.plan import ReadPlan


def is_stream(split: Any) -> bool:
    """Return whether a split of `load_data` is to be iterated over, rather than arrays."""
    import keras
    import tensorflow as tf

    kinds = (tf.data.Dataset, keras.utils.PyDataset)
    return isinstance(split, kinds) or inspect.isgenerator(split) or (callable(split) and not isinstance(split, tuple))


class StreamPlan(ReadPlan):
    """The batches of a stream; `begin` sets the epoch of the iterators made after it.

    A function of the epoch yields the same batches for the same epoch, so a resume can repeat them; of a Dataset or a
    function without arguments only its author knows. With train.steps_per_epoch the whole training is one iteration
    over pass after pass, and an epoch is that many steps of it.
    """

    def __init__(self, train: Train, name: str, split: Any, devices: int, batch_size: int) -> None:
        """`steps` is 0 if known only at an epoch's end. `batch_size` is for single examples.

        Raises:
            truba_runner.errors.Failed: the split cannot be iterated over, or its batching contradicts the config.
        """
        import tensorflow as tf

        super().__init__(name, devices, batch_size, train.seed if name == "train" else None)
        self._says_examples = train.batch_size is not None
        self.steps_per_epoch = train.steps_per_epoch if name == "train" else None
        # Keras warns so at the end of a first epoch whose length it did not know.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        with tf.device("CPU:0"):
            # The number of batches that an iterator over the whole training skips.
            self._left_out = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._all = self._in_batches(self._dataset(split), train)
        self.steps = self.steps_per_epoch or max(0, int(self._all.cardinality()))
        self.varies = not self.steps
        if self.steps_per_epoch:
            self._all = self._repeated(train, self.steps_per_epoch)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Start epoch `epoch`, counted from 0, after `step` of its steps."""
        super().begin(epoch, step)
        # Keras' iterator over the whole training reads this once, in a start's first epoch.
        self._left_out.assign(epoch * (self.steps_per_epoch or 0) + step)

    def from_step(self, step: int) -> Any:
        """Return `batches` without the first `step`."""
        dataset = super().from_step(step)
        return dataset if self.steps else self._leaving.through(dataset)

    def _batches_from(self, step: int) -> Any:
        """Return the batches from `step` on; those before are read and dropped, as a stream cannot be entered later."""
        import tensorflow as tf

        if not self.steps_per_epoch:
            return self._all.skip(step) if step else self._all
        # The variable is read when an iterator is made, not when the dataset is.
        rest = tf.data.Dataset.range(1).flat_map(lambda _: self._all.skip(self._left_out.read_value()))
        return fed_whole(rest)

    # -- elements ----------------------------------------------------------------------------------------------

    def _dataset(self, split: Any) -> Any:
        import tensorflow as tf

        if isinstance(split, tf.data.Dataset):
            self._check_end(split)
            dataset = with_ranks(self._name, split)
            shapes = [tuple(spec.shape) for spec in tf.nest.flatten(dataset.element_spec)]
            self._batched = is_batched(made_batches(split), shapes, self._says_examples)
            return dataset
        if not callable(split):
            raise Failed(
                "load_data returned for {name} a generator, which can be read only once, not again in the next "
                "epoch. Return the function that makes it, without calling it.",
                name=self._name,
            )
        return self._from_function(split)

    def _check_end(self, dataset: Any) -> None:
        import tensorflow as tf

        if self.steps_per_epoch or int(dataset.cardinality()) != tf.data.INFINITE_CARDINALITY:
            return
        if self._name == "train":
            raise Failed(
                "The Dataset that load_data returned for train never ends. Say how many batches are an epoch with "
                "train.steps_per_epoch=N: each epoch continues where the one before it ended."
            )
        raise Failed(
            "The Dataset that load_data returned for {name} never ends. Limit it to the elements to evaluate on, "
            "with .take(N).",
            name=self._name,
        )

    def _from_function(self, function: Callable[..., Any]) -> Any:
        """Return a Dataset of the elements of `function`, which is called each epoch, with its number if it takes one.

        With train.steps_per_epoch it is called whenever its last iterable has ended, with the number of the pass.
        """
        import tensorflow as tf

        takes_epoch = bool(inspect.signature(function).parameters)

        def elements_of(number: int) -> Iterator[Any]:
            result = function(number) if takes_epoch else function()
            return (element_of(self._name, yielded) for yielded in result)

        def elements() -> Iterator[Any]:
            return self._passes(elements_of) if self.steps_per_epoch else elements_of(self._epoch)

        result = function(0) if takes_epoch else function()
        if isinstance(result, tf.data.Dataset):
            self._check_end(result)
        first = looked_at(element_of(self._name, yielded) for yielded in result)
        if not first:
            raise self._yields_nothing()
        known = made_batches(result) if isinstance(result, tf.data.Dataset) else None
        shapes = [tuple(part.shape) for part in tf.nest.flatten(first[0])]
        self._batched = is_batched(known, shapes, self._says_examples)
        return tf.data.Dataset.from_generator(elements, output_signature=signature_of(first, self._batched))

    def _passes(self, elements_of: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
        for number in itertools.count():
            one = elements_of(number)
            first = next(one, None)
            if first is None:
                raise self._yields_nothing()
            yield first
            yield from one

    def _yields_nothing(self) -> Failed:
        return Failed("The function that load_data returned for {name} yields nothing.", name=self._name)

    # -- batches -----------------------------------------------------------------------------------------------

    def _in_batches(self, dataset: Any, train: Train) -> Any:
        check_batching(self._name, self._batched, train)
        if self._batched:
            dataset = owned(dataset)
        else:
            self.examples_per_step = self._batch_size
            dataset = dataset.batch(self._batch_size)
        if self._devices > 1:
            dataset = (
                trimmed(dataset, self._devices) if self._name == "train" else evened(self._name, dataset, self._devices)
            )
        return fed_whole(dataset)

    def _repeated(self, train: Train, steps: int) -> Any:
        """Return the batches repeated without end."""
        import tensorflow as tf

        if steps % train.steps_per_execution:
            raise Failed(
                "train.steps_per_epoch={steps}: Keras always completes an execution, and "
                "train.steps_per_execution={execution} does not divide the number of steps. Make the first a "
                "multiple of the second.",
                steps=steps,
                execution=train.steps_per_execution,
            )
        passed = int(self._all.cardinality())
        if passed == tf.data.INFINITE_CARDINALITY:
            return self._all
        if passed > 0 and passed % steps:
            raise Failed(
                "train.steps_per_epoch={steps}: the Dataset that load_data returned for train has {batches} "
                "batches, so an epoch would end in the middle of the Dataset. Add .repeat() to start it again when "
                "it ends, set a number that divides {batches}, or leave train.steps_per_epoch out.",
                steps=steps,
                batches=passed,
            )
        return self._all.repeat()


def run_out_safely(model: Any, plan: Any) -> None:
    """Let a stream of unknown length end without changing the model.

    If an execution is a single step, Keras learns of the end from an error in that step, after parts that need no data
    have run: the optimizer has counted a step that it did not take, which changes all later steps. An execution of
    several steps checks for the end before each of them.
    """
    if not plan.steps:
        model.steps_per_execution = max(2, model.steps_per_execution)
