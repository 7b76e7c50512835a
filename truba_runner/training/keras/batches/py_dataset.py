"""Batches of a keras.utils.PyDataset, fetched by number in an order of our own.

Keras calls its `on_epoch_begin` before each epoch, and its `on_epoch_end` after each and once before the first;
`batches.epochs` does the same. What the dataset changes there is its own state, which checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.training.keras.batches.batches import check_batching, evened, fed_whole, trimmed
from truba_runner.training.keras.batches.elements import LOOKED_AT, element_of, owned, signature_of, with_cardinality
from truba_runner.training.keras.batches.plan import ReadPlan
from truba_runner.training.keras.batches.splits import epoch_order

_UNKNOWN = -2


class PyDatasetPlan(ReadPlan):
    """The batches of a PyDataset, which gives their number at the beginning of each epoch."""

    def __init__(self, train: Train, name: str, split: Any, devices: int, batch_size: int) -> None:
        """On several devices `steps` is 0: how many batches are left once they divide is known only at the end.

        Raises:
            truba_runner.errors.Failed: the number of batches is unknown, or set twice.
        """
        self.varies = name == "train"
        super().__init__(name, devices, batch_size, train.seed if self.varies else None)
        check_batching(name, True, train)
        self.source = split
        self.rereads = devices > 1
        self._wanted: int | None = train.steps_per_epoch if self.varies else None
        self._check_length()
        self._ended = False
        self._measure()
        looked_at = [element_of(name, split[index]) for index in range(min(LOOKED_AT, self._count()))]
        self._spec = signature_of(looked_at, batched=True)

    @property
    def dataset(self) -> Any:
        """`batches`, whose number is read from the PyDataset each time that Keras asks for it."""
        return with_cardinality(self.batches, lambda: _UNKNOWN if self._devices > 1 else self._count())

    # -- epochs ------------------------------------------------------------------------------------------------

    def begins(self) -> None:
        """Call the dataset's `on_epoch_begin`; after all callbacks, before the first batch."""
        self._ended = False
        self.source.on_epoch_begin()
        self._measure()

    def ends(self) -> None:
        """Call the dataset's `on_epoch_end`, once an epoch; after its last batch, before validation."""
        if not self._ended:
            self._ended = True
            self.source.on_epoch_end()

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the current epoch, without the dataset's own state."""
        return {"steps": self.steps, "ended": self._ended}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.steps, self._ended = state["steps"], state["ended"]

    # -- batches -----------------------------------------------------------------------------------------------

    def from_step(self, step: int) -> Any:
        """Return `batches` without the first `step`; on one device these are not fetched."""
        dataset = super().from_step(step)
        return dataset if self._devices == 1 else self._leaving.through(dataset)

    def _batches_from(self, step: int) -> Any:
        if self._devices == 1:
            return fed_whole(owned(self._fetched(step)))
        dataset = owned(self._fetched(0))
        if not self.varies:
            return fed_whole(evened(self._name, dataset, self._devices))
        dataset = trimmed(dataset, self._devices)
        return fed_whole(dataset.skip(step) if step else dataset)

    def _fetched(self, step: int) -> Any:
        import tensorflow as tf

        flat = tf.nest.flatten(self._spec)
        if not all(isinstance(spec, tf.TensorSpec) for spec in flat):
            # Only dense arrays can be returned from tf.numpy_function, which fetches in threads.
            return tf.data.Dataset.from_generator(lambda: self._elements(step), output_signature=self._spec)

        def fetch(number: Any) -> list[Any]:
            parts = tf.nest.flatten(element_of(self._name, self.source[int(number)]))
            return [part.astype(spec.dtype.as_numpy_dtype, copy=False) for part, spec in zip_equal(parts, flat)]

        def batch(number: Any) -> Any:
            parts = tf.numpy_function(fetch, [number], [spec.dtype for spec in flat])
            shaped = [tf.ensure_shape(part, spec.shape) for part, spec in zip_equal(parts, flat)]
            return tf.nest.pack_sequence_as(self._spec, shaped)

        numbers = tf.data.Dataset.from_generator(
            lambda: self._numbers(step), output_signature=tf.TensorSpec((), tf.int64)
        )
        return numbers.map(batch, num_parallel_calls=max(1, self.source.workers), deterministic=True)

    def _elements(self, step: int) -> Iterator[Any]:
        return (element_of(self._name, self.source[number]) for number in self._numbers(step))

    def _numbers(self, step: int) -> Iterator[int]:
        count = self._count()
        if self._wanted:
            # Batch numbers continue over the epochs.
            return iter(range(self._epoch * count + step, (self._epoch + 1) * count))
        if self._seed is None:
            return iter(range(step, count))
        order: list[int] = epoch_order(self._seed, self._epoch, count).tolist()
        return iter(order[step:])

    # -- how many ----------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        self.steps = self._count() if self._devices == 1 else 0

    def _count(self) -> int:
        return int(self._wanted or self.source.num_batches)

    def _check_length(self) -> None:
        try:
            count = self.source.num_batches
        except NotImplementedError:
            count = None
        if count and self._wanted:
            raise Failed(
                "train.steps_per_epoch={steps}: the PyDataset that load_data returned for train already says that "
                "an epoch has {count} batches. Leave train.steps_per_epoch out, or let num_batches return None and "
                "__getitem__ take any number.",
                steps=self._wanted,
                count=count,
            )
        if not count and not self._wanted:
            remedy = _("Give it __len__, or set train.steps_per_epoch=N.") if self.varies else _("Give it __len__.")
            raise Failed(
                "The PyDataset that load_data returned for {name} does not say how many batches it has. {remedy}",
                name=self._name,
                remedy=remedy,
            )
