"""Load a job's splits, and batch arrays in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import call
from truba_runner.training.keras.batches.arrays import as_arrays, count_examples, element, held, take
from truba_runner.training.keras.batches.batches import fed_whole
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.batches.streams import is_stream
from truba_runner.training.keras.devices.team import Team

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def load_splits(context: Context) -> dict[str, Any]:
    """Call the job's `load_data`: each split is `(x,)`, `(x, y)` or `(x, y, sample_weight)` of arrays.

    x and y may also be mappings and lists of arrays, and a split anything that is a stream (`streams.is_stream`).

    Raises:
        truba_runner.errors.Failed: the job has no such function, or it returned something else.
    """
    import keras

    data = context.experiment.data
    splits = call(context.job, "load_data", "data.options", data.options, name=data.name, folder=Path(data.folder))
    if not isinstance(splits, dict) or "train" not in splits or not set(splits) <= set(SPLITS):
        keys = ", ".join(map(str, splits)) if isinstance(splits, dict) else ""
        received = _("the keys {keys}", keys=keys) if isinstance(splits, dict) else type(splits).__name__
        raise Failed(
            "load_data in {file} returned {received}. It has to return a dict with the key train, and optionally "
            "validation and test, each with a pair (x, y) of arrays.",
            file=context.job.__file__,
            received=received,
        )
    # Only a float64 network gains from float64 data.
    floats = "float64" if context.experiment.train.mixed_precision == "float64" else keras.config.floatx()
    return {name: _checked(context, name, split, floats) for name, split in splits.items()}


def _checked(context: Context, name: str, split: Any, floats: str) -> Any:
    if is_stream(split):
        return split
    if not isinstance(split, tuple) or not 1 <= len(split) <= 3:
        raise Failed(
            "load_data in {file} returned for {name} a {kind}. It has to be a pair (x, y) of arrays, (x, y, "
            "sample_weight) or (x,), a tf.data.Dataset, a keras.utils.PyDataset or a function.",
            file=context.job.__file__,
            name=name,
            kind=type(split).__name__,
        )
    arrays = as_arrays(name, split, floats)
    count_examples(name, arrays)
    return arrays


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[Any]:
    """Return the order of the examples in epoch `epoch`, counted from 0: int64 of shape `(examples,)`."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(examples)


class DataPlan(Plan):
    """The batches of arrays in memory; `begin` sets the epoch of the iterators made after it."""

    def __init__(
        self,
        arrays: Any,
        *,
        examples: int,
        batch_size: int,
        devices: int,
        seed: int | None = None,
        steps: int | None = None,
        team: Team | None = None,
    ) -> None:
        """With a seed, batches are for training: shuffled anew each epoch; without, for evaluation: in order, complete.

        With `steps` (train.steps_per_epoch) an epoch is that many steps out of one shuffled pass after another. With a
        team, whose devices `devices` counts, the plan has only this rank's share of each batch.

        Every batch has to divide among the devices, else Keras weights the examples of a smaller share more. So a
        shuffled epoch leaves out its last `examples % devices`, other ones each time; and as Keras builds a model from
        the mean of the first batch's shares, at least that batch divides in evaluation.

        Raises:
            truba_runner.errors.Failed: there are fewer examples than devices.
        """
        import tensorflow as tf

        if examples < devices:
            raise Failed(
                "{devices} devices need at least {devices} examples in every split, but one has {examples}.",
                devices=devices,
                examples=examples,
            )
        divisible = examples - examples % devices
        super().__init__(devices, min(batch_size, divisible), seed, examples, team)
        self._examples = examples
        self._used = examples if seed is None else divisible
        self.examples_per_step = self._batch_size
        self._steps_of_pass = -(-self._used // self._batch_size)
        self.steps = steps or self._steps_of_pass
        # On the host and outside the strategy's scope: one order for all devices.
        with tf.device("CPU:0"):
            self._arrays = element(held(arrays))
            # An epoch's rows and the offsets of its batches, as `_epoch` returns them.
            self._order, self._starts = (
                tf.Variable(values, dtype=tf.int64, trainable=False, shape=[None]) for values in self._epoch(0)
            )

    def begin(self, epoch: int, step: int = 0) -> None:
        """Set the order of epoch `epoch`, counted from 0."""
        if self._seed is not None:
            order, starts = self._epoch(epoch)
            self._order.assign(order)
            self._starts.assign(starts)

    def _epoch(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the rows of an epoch's examples in order, and the offsets at which batches begin and the last ends."""
        import numpy as np

        of_pass = np.minimum(np.arange(self._steps_of_pass + 1) * self._batch_size, self._used)
        if self._seed is None:
            return np.arange(self._used), of_pass
        batches = []
        # Steps counted over the whole training.
        begin, end, steps = epoch * self.steps, (epoch + 1) * self.steps, self._steps_of_pass
        for number in range(begin // steps, -(-end // steps)):
            order = epoch_order(self._seed, number, self._examples)[: self._used]
            first, last = max(0, begin - number * steps), min(steps, end - number * steps)
            batches += np.split(order[: of_pass[last]], of_pass[first:last])[1:]
        return np.concatenate(batches), np.cumsum([0, *map(len, batches)])

    def _batches_from(self, step: int) -> Any:
        """Return the batches from `step` on; those before are not made."""
        import tensorflow as tf

        def batches(order: Any, starts: Any) -> Any:
            numbers = tf.data.Dataset.range(step, self.steps)
            parts = numbers.map(lambda number: order[starts[number] : starts[number + 1]])
            if self._team is not None:
                parts = parts.flat_map(self._team.split)
            return parts.map(
                lambda rows: take(self._arrays, rows), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )

        # The variables are read when an iterator is made, not when the dataset is.
        orders = tf.data.Dataset.range(1).map(lambda _: (self._order.read_value(), self._starts.read_value()))
        known = tf.data.experimental.assert_cardinality(self.steps - step)
        dataset = orders.flat_map(batches)
        # A team's dataset has an element per device and step.
        return fed_whole(dataset.apply(known) if self._team is None else dataset)
