"""What a training goes through, epoch by epoch, whatever it is made of: batches that can be begun at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from truba_runner.training.keras.batches.elements import with_cardinality

if TYPE_CHECKING:
    from truba_runner.training.keras.devices.team import Team

# More steps than any epoch has.
_NO_END = 2**40


class Plan:
    """A split's batches."""

    # Steps of an epoch; 0 where that shows only at its end.
    steps: int
    # Of all devices together; 0 where batches are their author's.
    examples_per_step: int = 0
    # Whether an epoch's length is its own: Keras would take that of the first for all.
    varies = False
    # Whether an epoch's middle is reached by reading what comes before it again.
    rereads = True
    # train.steps_per_epoch where Keras' one iterator goes on over the epochs; None: each epoch has one of its own.
    steps_per_epoch: int | None = None

    def __init__(self, team: Team | None = None) -> None:
        """The subclass sets `steps`. With a team a plan gives this rank's share of each batch alone."""
        self._team = team
        self._transforms: list[Callable[[Any], Any]] = []
        self._batches: Any = None
        self._next = 0

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
    def for_fit(self) -> Any:
        """`dataset` for a `fit` whose epochs end where `is_over` says so, or where the batches do."""
        return with_cardinality(self.batches, lambda: _NO_END) if self.varies else self.dataset

    def example(self) -> Any:
        """A batch for a step that is put back; what is trained on afterwards is the same with and without."""
        return next(iter(self.batches))

    @property
    def signature(self) -> dict[str, Any]:
        """What decides which examples a step is trained on."""
        raise NotImplementedError

    def begin(self, epoch: int, step: int = 0) -> None:
        """Says that epoch `epoch`, counted from 0, comes next, or goes on after `step` of its steps."""
        raise NotImplementedError

    def trained(self, counted: int) -> int:
        """Batches of the epoch that are trained, where Keras has `counted` steps.

        It counts an epoch's last execution as if it had all of its steps.
        """
        return min(counted, self.steps)

    def comes_to(self, step: int) -> bool:
        """Notes that Keras is about to take step number `step` of the epoch, counted from 0; false: there is none."""
        self._next = step
        return not self.is_over()

    def is_over(self) -> bool:
        """Whether the epoch has no more steps, though Keras is about to take one."""
        return bool(self.varies and self.steps and self._next >= self.steps)

    def ends(self) -> None:
        """The epoch's last batch is trained, and its validation comes next."""

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the epoch under way."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`."""

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
