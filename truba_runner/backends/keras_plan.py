"""What a training goes through, epoch by epoch, whatever it is made of: batches that can be begun at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Plan:
    """A split's batches. `dataset` is an epoch's from its beginning, made anew with each iterator."""

    # Steps of an epoch; 0 where that shows only at the end of the first.
    steps: int
    dataset: Any
    # Whether `steps` was known beforehand, so that an epoch can be gone on with in its middle.
    counted = True

    def __init__(self) -> None:
        """The subclass sets `steps` and `dataset`."""
        self._transforms: list[Callable[[Any], Any]] = []

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
        self.dataset = transform(self.dataset)

    def from_step(self, step: int) -> Any:
        """The dataset of an epoch without its first `step` batches."""
        dataset = self._batches_from(step)
        for transform in self._transforms:
            dataset = transform(dataset)
        return dataset

    def _batches_from(self, step: int) -> Any:
        raise NotImplementedError
