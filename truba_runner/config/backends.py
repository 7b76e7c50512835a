"""Traits of each backend, for those who do not import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traits:
    """What the plan must know of a backend without importing it."""

    # A task is one process: one a node with all of its GPUs, or one a GPU.
    task_per_gpu: bool
    multi_node: bool
    # Whether a training's rates are made for its length, so that the last epoch's model is what it comes to.
    last_epoch_counts: bool = False
    # Packages that it cannot do without, and the oldest versions that it was tried with.
    needs: Mapping[str, str] = field(default_factory=dict)


TRAITS = {
    "keras": Traits(task_per_gpu=False, multi_node=True, needs={"tensorflow": "2.18", "keras": "3.6"}),
    "fastai": Traits(
        task_per_gpu=True, multi_node=True, last_epoch_counts=True, needs={"torch": "2.6", "fastai": "2.8"}
    ),
}
