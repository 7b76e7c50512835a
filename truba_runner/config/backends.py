"""Traits of each backend, readable without importing the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traits:
    """Facts about a backend that the plan needs without importing the backend."""

    # A Slurm task is one process. True: one task per GPU; False: one task per node, with all of its GPUs.
    task_per_gpu: bool
    multi_node: bool
    # True: learning-rate schedules depend on the training's length, so the last epoch's model is the result.
    last_epoch_counts: bool = False
    # Required packages, with the oldest version of each that was tested.
    needs: Mapping[str, str] = field(default_factory=dict)


TRAITS = {
    "keras": Traits(task_per_gpu=False, multi_node=True, needs={"tensorflow": "2.18", "keras": "3.6"}),
    "fastai": Traits(
        task_per_gpu=True, multi_node=True, last_epoch_counts=True, needs={"torch": "2.6", "fastai": "2.8"}
    ),
}
