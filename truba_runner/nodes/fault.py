"""A fault of a compute node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What a check found wrong with a node; `check` is the name of the check, `message` a sentence for people."""

    node: str
    check: str
    message: str
    # Seconds since 1970.
    time: float
