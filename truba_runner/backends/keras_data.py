"""A job's arrays as batches for Keras, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from truba_runner.backends import Context
from truba_runner.backends.job_calls import call
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_streams import is_stream
from truba_runner.errors import Failed
from truba_runner.language import _

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from truba_runner.backends.keras_nodes import Team

SPLITS = ("train", "validation", "test")


def load_splits(context: Context) -> dict[str, Any]:
    """What the job's `load_data` returns: `(x, y)` a split, `x` and `y` an array or a mapping of arrays each.

    A split may also be what `keras_streams` goes through.

    Raises:
        truba_runner.errors.Failed: there is no such function, or what it returns is something else.
    """
    data = context.experiment.data
    splits = call(context.job, "load_data", "data.options", data.options, name=data.name, folder=Path(data.folder))
    if not isinstance(splits, dict) or "train" not in splits or not set(splits) <= set(SPLITS):
        keys = ", ".join(map(str, splits)) if isinstance(splits, dict) else ""
        received = _("the keys {keys}", keys=keys) if isinstance(splits, dict) else type(splits).__name__
        raise Failed(
            _(
                "load_data in {file} returned {received}. It has to return a dict with the key train, and validation "
                "or test or both beside it, each with a pair (x, y) of arrays.",
                file=context.job.__file__,
                received=received,
            )
        )
    for name, split in splits.items():
        if is_stream(split):
            continue
        if not isinstance(split, tuple) or len(split) != 2:
            raise Failed(
                _(
                    "load_data in {file} returned for {name} a {kind}. It has to be a pair (x, y) of arrays, a "
                    "tf.data.Dataset, a keras.utils.PyDataset or a function.",
                    file=context.job.__file__,
                    name=name,
                    kind=type(split).__name__,
                )
            )
        count_examples(name, split)
    return splits


def count_examples(name: str, split: Any) -> int:
    """How many examples a split has.

    Raises:
        truba_runner.errors.Failed: it has none, its arrays disagree, or they are no arrays.
    """
    import tensorflow as tf

    arrays = tf.nest.flatten(split)
    # A list of numbers is flattened into numbers, which have no shape.
    if not arrays or not all(getattr(array, "shape", None) for array in arrays):
        raise Failed(
            _("load_data returned something else than NumPy arrays for {name}. Wrap lists in np.array(…).", name=name)
        )
    counts = {len(array) for array in arrays}
    if counts == {0}:
        raise Failed(
            _("load_data returned no examples for {name}. Return some, or leave {name} out where it may be.", name=name)
        )
    if len(counts) != 1:
        found = _(" and ").join(map(str, sorted(counts)))
        raise Failed(
            _(
                "load_data returned arrays of {found} examples for {name}: x and y need the same number.",
                found=found,
                name=name,
            )
        )
    return counts.pop()


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[Any]:
    """The order in which epoch `epoch`, counted from 0, goes through the examples: int64 of shape `(examples,)`."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(examples)


class DataPlan(Plan):
    """Batches out of arrays in memory. `begin` says which epoch an iterator that is made after it goes through."""

    def __init__(
        self,
        arrays: Any,
        *,
        examples: int,
        batch_size: int,
        devices: int,
        seed: int | None = None,
        team: Team | None = None,
    ) -> None:
        """With a seed it is for training: shuffled anew each epoch. Without, for evaluation: in order and complete.

        With a team, whose devices `devices` counts, it gives this rank's share of each batch alone.

        Every batch has to divide among the devices, else Keras weights the examples of the smaller share more. So a
        shuffled epoch leaves out the last `examples % devices`, others each time; and as Keras builds a model from
        the mean of the first batch's shares, that batch at least divides in evaluation.

        Raises:
            truba_runner.errors.Failed: there are fewer examples than devices.
        """
        import numpy as np
        import tensorflow as tf

        super().__init__(team)
        if examples < devices:
            raise Failed(
                _(
                    "{devices} devices need {devices} examples or more in every split, and one has {examples}.",
                    devices=devices,
                    examples=examples,
                )
            )
        divisible = examples - examples % devices
        self._seed = seed
        self._examples = examples
        self._used = examples if seed is None else divisible
        self._batch_size = self.examples_per_step = min(batch_size, divisible)
        self.steps = -(-self._used // self._batch_size)
        # Outside the strategy's scope and on the host: one order, whatever the devices.
        with tf.device("CPU:0"):
            self._arrays = tf.nest.map_structure(tf.constant, arrays)
            self._order = tf.Variable(np.arange(self._used), dtype=tf.int64, trainable=False, name="order")

    @property
    def signature(self) -> dict[str, Any]:
        """What decides which examples a step is trained on."""
        return {"examples": self._examples, "batch_size": self._batch_size, "seed": self._seed}

    def begin(self, epoch: int) -> None:
        """Sets the order of epoch `epoch`, counted from 0."""
        if self._seed is not None:
            self._order.assign(epoch_order(self._seed, epoch, self._examples)[: self._used])

    def _batches_from(self, step: int) -> Any:
        """Those before are not made."""
        import tensorflow as tf

        def batches(order: Any) -> Any:
            def batch(rows: Any) -> Any:
                return tf.nest.map_structure(lambda array: tf.gather(array, rows), self._arrays)

            starts = tf.data.Dataset.range(step * self._batch_size, self._used, self._batch_size)
            parts = starts.map(lambda start: order[start : start + self._batch_size])
            if self._team is not None:
                parts = parts.flat_map(self._team.split)
            return parts.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

        # The variable is read when an iterator is made, not when the dataset is.
        orders = tf.data.Dataset.range(1).map(lambda _: self._order.read_value())
        known = tf.data.experimental.assert_cardinality(self.steps - step)
        options = tf.data.Options()
        # One process feeds every device: batches are divided among them, files are not.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = orders.flat_map(batches)
        # A team's shares are more than its steps.
        counted = dataset.apply(known) if self._team is None else dataset
        return counted.prefetch(tf.data.AUTOTUNE).with_options(options)
