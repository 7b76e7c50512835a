"""Interrupt a run on purpose at given steps, to measure the cost of an interruption.

In its first start the run sends itself the signal that Slurm sends before a time limit; in its second it kills itself,
as a failing node would; later starts are not interrupted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from truba_runner.config.schema import Drill


def saboteur(drill: Drill, start: int) -> Callable[[int], None] | None:
    """Return a function of the step that interrupts start number `start`, counted from 0; None if not planned."""
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
