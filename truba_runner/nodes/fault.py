"""Definition of a fault: what is wrong with a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault of a node.

    `check` is a name: gpus, gpu_memory, shared_disk, node_disk, environment, clock, convolution, no_answer. `time` is
    in seconds since 1970.
    """

    node: str
    check: str
    message: str
    time: float
