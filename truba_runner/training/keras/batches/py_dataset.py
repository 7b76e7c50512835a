"""A keras.utils.PyDataset as batches for Keras: fetched by number, in an order of our own, its epochs told to it.

Keras calls its `on_epoch_begin` before each epoch, and its `on_epoch_end` after each and once before the first;
`keras_epochs` does so. What it changes there is state of its own, which checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.keras.batches.batches import check_batching, evened, fed_whole, trimmed
from truba_runner.training.keras.batches.elements import (
    LOOKED_AT,
    Leaving,
    element_of,
    owned,
    signature_of,
    with_cardinality,
    zeros,
)
from truba_runner.training.keras.batches.plan import Plan

_UNKNOWN = -2


class PyDatasetPlan(Plan):
    """What `DataPlan` is for arrays. An epoch has as many batches as the dataset says when it begins."""

    def __init__(self, train: Train, name: str, split: Any, devices: int, batch_size: int) -> None:
        """On several devices `steps` is 0: what is left of its batches when they divide among them shows at the end.

        Raises:
            truba_runner.errors.Failed: its number of batches is not known, or is said twice.
        """
        super().__init__()
        check_batching(name, True, train)
        self.told, self._name, self._devices, self._batch_size = split, name, devices, batch_size
        self.varies = name == "train"
        self.rereads = devices > 1
        self._seed: int | None = train.seed if self.varies else None
        self._wanted: int | None = train.steps_per_epoch if self.varies else None
        self._check_length(train)
        self._epoch = 0
        self._ended = False
        self._leaving = Leaving()
        self._measure()
        looked_at = [element_of(name, split[index]) for index in range(min(LOOKED_AT, self._count()))]
        self._spec = signature_of(looked_at, batched=True)

    @property
    def dataset(self) -> Any:
        """`batches`, of which there are as many as the dataset says when it is gone through."""
        return with_cardinality(self.batches, lambda: _UNKNOWN if self._devices > 1 else self._count())

    @property
    def signature(self) -> dict[str, Any]:
        """What is known of it; which examples are in which batch is for its author to keep."""
        return {"examples": None, "batch_size": self._batch_size, "seed": self._seed}

    def example(self) -> Any:
        """A batch of zeros: whoever is asked for a batch may draw from random numbers for it."""
        return zeros(self.batches.element_spec, self._devices)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Sets the order of epoch `epoch`, counted from 0; `step` of its steps are done."""
        self._epoch = epoch
        self._leaving.begin(step)

    def trained(self, counted: int) -> int:
        """Batches of the epoch that are trained, where Keras has `counted` steps."""
        return min(counted, self.steps) if self.steps else self._leaving.trained(counted)

    # -- what it is told ---------------------------------------------------------------------------------------

    def begins(self) -> None:
        """The epoch's callbacks have been called, and its first batch comes next."""
        self._ended = False
        self.told.on_epoch_begin()
        self._measure()

    def ends(self) -> None:
        """The epoch's last batch is trained, and its validation comes next."""
        if not self._ended:
            self._ended = True
            self.told.on_epoch_end()

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the epoch under way; what the dataset itself remembers is not in it."""
        return {"steps": self.steps, "ended": self._ended}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`."""
        self.steps, self._ended = state["steps"], state["ended"]

    # -- batches -----------------------------------------------------------------------------------------------

    def from_step(self, step: int) -> Any:
        """`batches` without the first `step`; with a known length they are not fetched."""
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
            # Arrays alone pass from threads of Python's.
            return tf.data.Dataset.from_generator(lambda: self._elements(step), output_signature=self._spec)

        def fetch(number: Any) -> list[Any]:
            parts = tf.nest.flatten(element_of(self._name, self.told[int(number)]))
            return [part.astype(spec.dtype.as_numpy_dtype, copy=False) for part, spec in zip(parts, flat, strict=True)]

        def batch(number: Any) -> Any:
            parts = tf.numpy_function(fetch, [number], [spec.dtype for spec in flat])
            shaped = [tf.ensure_shape(part, spec.shape) for part, spec in zip(parts, flat, strict=True)]
            return tf.nest.pack_sequence_as(self._spec, shaped)

        numbers = tf.data.Dataset.from_generator(
            lambda: self._numbers(step), output_signature=tf.TensorSpec((), tf.int64)
        )
        return numbers.map(batch, num_parallel_calls=max(1, self.told.workers), deterministic=True)

    def _elements(self, step: int) -> Iterator[Any]:
        return (element_of(self._name, self.told[number]) for number in self._numbers(step))

    def _numbers(self, step: int) -> Iterator[int]:
        from truba_runner.training.keras.batches.splits import epoch_order

        count = self._count()
        if self._wanted:
            # Its batches go on over the epochs.
            return iter(range(self._epoch * count + step, (self._epoch + 1) * count))
        if self._seed is None:
            return iter(range(step, count))
        order: list[int] = epoch_order(self._seed, self._epoch, count).tolist()
        return iter(order[step:])

    # -- how many ----------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        self.steps = self._count() if self._devices == 1 else 0

    def _count(self) -> int:
        return int(self._wanted or self.told.num_batches)

    def _check_length(self, train: Train) -> None:
        try:
            count = self.told.num_batches
        except NotImplementedError:
            count = None
        if count and self._wanted:
            raise Failed(
                _(
                    "train.steps_per_epoch={steps}: the PyDataset that load_data returned for train says itself that "
                    "an epoch has {count} batches. Leave train.steps_per_epoch out, or let num_batches return None "
                    "and __getitem__ take any number.",
                    steps=self._wanted,
                    count=count,
                )
            )
        if not count and not self._wanted:
            remedy = _("Give it __len__, or set train.steps_per_epoch=N.") if self.varies else _("Give it __len__.")
            raise Failed(
                _(
                    "The PyDataset that load_data returned for {name} does not say how many batches it has. {remedy}",
                    name=self._name,
                    remedy=remedy,
                )
            )
