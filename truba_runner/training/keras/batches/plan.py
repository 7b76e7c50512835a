"""Base class of a split's batches, which start at any step of any epoch, whatever the data is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truba_runner.training.keras.batches.elements import Leaving, with_cardinality, zeros
from truba_runner.training.keras.devices.team import Team

# More steps than any epoch has.
_NO_END = 2**40


class Plan:
    """The batches of one split."""

    # Steps per epoch; 0 if known only at the epoch's end.
    steps: int
    # Over all devices; 0 if the data comes in batches of its author's.
    examples_per_step: int = 0
    # Whether epochs may differ in length: Keras would use the first one's for all.
    varies = False
    # Whether the middle of an epoch is reached by rereading the batches before it.
    rereads = True
    # train.steps_per_epoch if one iterator spans all epochs; None: each epoch has its own iterator.
    steps_per_epoch: int | None = None

    def __init__(
        self, devices: int, batch_size: int, seed: int | None, examples: int | None = None, team: Team | None = None
    ) -> None:
        """The subclass sets `steps`. With a team a plan has only this rank's share of each batch.

        `seed`: None for evaluation. `examples`: None if only the data's author knows them.
        """
        self._devices, self._batch_size, self._seed, self._team = devices, batch_size, seed, team
        # The values that decide which examples a step is trained on.
        self.signature: dict[str, Any] = {"examples": examples, "batch_size": batch_size, "seed": seed}
        self._transforms: list[Callable[[Any], Any]] = []
        self._batches: Any = None
        self._next = 0

    @property
    def batches(self) -> Any:
        """A whole epoch as a tf.data.Dataset; an iterator reads the epoch's order when it is made."""
        if self._batches is None:
            self._batches = self.from_step(0)
        return self._batches

    @property
    def dataset(self) -> Any:
        """The dataset for Keras' loops: `batches`, with a team in the form that feeds its devices."""
        return self.batches if self._team is None else self._team.feed(self.batches, self.steps)

    @property
    def for_fit(self) -> Any:
        """`dataset` for `fit`, whose epochs end when `is_over` is true or the batches end."""
        return with_cardinality(self.batches, lambda: _NO_END) if self.varies else self.dataset

    def example(self) -> Any:
        """Return a batch for a trial step; the batches trained on afterwards do not depend on this call."""
        return next(iter(self.batches))

    def begin(self, epoch: int, step: int = 0) -> None:
        """Start epoch `epoch`, counted from 0, after `step` of its steps."""
        raise NotImplementedError

    def trained(self, counted: int) -> int:
        """Return how many batches of the epoch are trained; Keras counts the epoch's last execution as a full one."""
        return min(counted, self.steps)

    def comes_to(self, step: int) -> bool:
        """Note that Keras is about to take step `step` of the epoch, counted from 0; return whether it exists."""
        self._next = step
        return not self.is_over()

    def is_over(self) -> bool:
        """Return whether the epoch has no more steps, though Keras is about to take one."""
        return bool(self.varies and self.steps and self._next >= self.steps)

    def ends(self) -> None:
        """Handle the end of an epoch: its last batch is trained, its validation comes next."""

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the current epoch."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""

    def then(self, transform: Callable[[Any], Any]) -> None:
        """Add a transform of the batches' dataset, such as weights or preprocessing."""
        self._transforms.append(transform)
        self._batches = None

    def from_step(self, step: int) -> Any:
        """Return `batches` without the first `step`."""
        dataset = self._batches_from(step)
        for transform in self._transforms:
            dataset = transform(dataset)
        return dataset

    def _batches_from(self, step: int) -> Any:
        raise NotImplementedError


class ReadPlan(Plan):
    """A plan of data whose batches are read one after another, and may be counted only as they leave the pipeline."""

    def __init__(self, name: str, devices: int, batch_size: int, seed: int | None) -> None:
        """`name`: the split's, for messages."""
        super().__init__(devices, batch_size, seed)
        self._name = name
        # Set by `begin`, as an iterator does not know its epoch.
        self._epoch = 0
        self._leaving = Leaving()

    def example(self) -> Any:
        """Return a batch of zeros: to read a real one may draw random numbers that decide later batches."""
        return zeros(self.batches.element_spec, self._devices)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Start epoch `epoch`, counted from 0, after `step` of its steps."""
        self._epoch = epoch
        self._leaving.begin(step)

    def trained(self, counted: int) -> int:
        """Return how many batches of the epoch are trained when Keras has counted `counted` steps."""
        return min(counted, self.steps) if self.steps else self._leaving.trained(counted)
