"""The devices that train one Keras model: those of one node here, those of several in `team`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.keras.devices.devices import make_strategy
from truba_runner.training.ranks.group import Group


class Nodes(Group):
    """The devices of a training's ranks, seen from one rank. This class is for one process; `Team` is for several."""

    def __init__(self, context: Context, devices: list[str]) -> None:
        """`devices`: those of this process."""
        super().__init__(context.interruption, context.rank, context.tasks)
        self._names, self._local = devices, len(devices)

    @cached_property
    def strategy(self) -> Any:
        """The strategy to build a model under; made at its first use, as the job may set up TensorFlow until then."""
        return make_strategy(self._names)

    @property
    def devices(self) -> int:
        """The number of devices of all ranks."""
        return self._local * self.tasks

    @property
    def first_device(self) -> int:
        """The index of this rank's first device among those of all ranks."""
        return self._local * self.rank

    def adjust(self, model: Any) -> None:
        """Change the settings of a compiled model that do not work on these devices."""

    def feed(self, batches: Any, steps: int) -> Any:
        """Return a dataset of a plan's `batches` that feeds each device its share; an epoch has `steps` steps."""
        return self.strategy.experimental_distribute_dataset(batches)
