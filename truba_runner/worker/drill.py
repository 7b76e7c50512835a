"""Breaks a run on purpose, at steps that are known beforehand, so that what a break costs can be looked at.

At its first start the run sends itself the signal that Slurm sends before a time limit; at its second it kills itself,
as a failing node does; the third is left alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from truba_runner.config.schema import Drill


def saboteur(drill: Drill, start: int) -> Callable[[int], None] | None:
    """What is told each step of start number `start`, counted from 0, and breaks the run; None where nothing is to."""
    plan = [(drill.signal_at_step, signal.SIGUSR2), (drill.kill_at_step, signal.SIGKILL)]
    if start >= len(plan) or plan[start][0] is None:
        return None
    (at_step, number), done = plan[start], False

    def watch(step: int) -> None:
        nonlocal done
        if not done and at_step is not None and step >= at_step:
            done = True
            os.kill(os.getpid(), number)

    return watch
