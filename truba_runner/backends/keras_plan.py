"""What a training goes through, epoch by epoch, whatever it is made of: batches that can be begun at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truba_runner.backends.keras_nodes import Team


class Plan:
    """A split's batches."""

    # Steps of an epoch; 0 where that shows only at the end of the first.
    steps: int
    # Of all devices together; 0 where batches are their author's.
    examples_per_step: int = 0
    # Whether `steps` was known beforehand, so that an epoch can be gone on with in its middle.
    counted = True

    def __init__(self, team: Team | None = None) -> None:
        """The subclass sets `steps`. With a team a plan gives this rank's share of each batch alone."""
        self._team = team
        self._transforms: list[Callable[[Any], Any]] = []
        self._batches: Any = None

    @property
    def batches(self) -> Any:
        """An epoch from its beginning, as a tf.data.Dataset; an iterator that is made of it reads the epoch's order."""
        if self._batches is None:
            self._batches = self.from_step(0)
        return self._batches

    @property
    def dataset(self) -> Any:
        """What Keras' loops are given: `batches`, and with a team in the form that feeds its devices."""
        return self.batches if self._team is None else self._team.feed(self.batches, self.steps)

    @property
    def signature(self) -> dict[str, Any]:
        """What decides which examples a step is trained on."""
        raise NotImplementedError

    def begin(self, epoch: int) -> None:
        """Says that epoch `epoch`, counted from 0, comes next."""
        raise NotImplementedError

    def then(self, transform: Callable[[Any], Any]) -> None:
        """Adds a step to how a batch is made: weights, preprocessing."""
        self._transforms.append(transform)
        self._batches = None

    def from_step(self, step: int) -> Any:
        """`batches` without the first `step`."""
        dataset = self._batches_from(step)
        for transform in self._transforms:
            dataset = transform(dataset)
        return dataset

    def _batches_from(self, step: int) -> Any:
        raise NotImplementedError
