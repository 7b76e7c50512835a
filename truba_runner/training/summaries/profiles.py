"""Profile a range of steps once in a run with the framework's profiler, into TensorBoard's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from truba_runner.log import info, print_error


class Profiler(Protocol):
    """Interface of a framework's profiler."""

    def start(self) -> None:
        """Profile from the next step on."""

    def step(self) -> None:
        """Mark the boundary between two profiled steps."""

    def stop(self, folder: Path | None) -> None:
        """Write the profile into `folder`, which exists; None: discard it."""


class Profile:
    """Decides when to profile. A run has one profile; one that was interrupted starts again."""

    def __init__(self, folder: Path, steps: Sequence[int], profiler: Profiler) -> None:
        """`steps`: first and last step, over all epochs; profiling starts with the first execution from there on."""
        self._folder, self._profiler = folder / "plugins" / "profile", profiler
        self._first, self._count = steps[0], steps[1] - steps[0] + 1
        self._before, self._trained = -1, 0
        self._done = any(self._folder.glob("steps-*"))

    def trained(self, steps: int) -> None:
        """Start, step or stop the profiler; call after each execution. `steps`: trained so far. Errors are printed."""
        self._trained = steps
        if self._done:
            return
        try:
            if self._before < 0:
                if steps >= self._first - 1:
                    self._profiler.start()
                    self._before = steps
            elif steps - self._before < self._count:
                self._profiler.step()
            else:
                self._done = True
                folder = self._folder / f"steps-{self._before + 1}-{steps}"
                folder.mkdir(mode=0o700, parents=True)
                self._profiler.stop(folder)
                info("profile of steps {first} to {last}: {folder}", first=self._before + 1, last=steps, folder=folder)
        except Exception as error:
            self._done = True
            print_error("no profile was taken ({kind}: {error})", kind=type(error).__name__, error=error)

    def close(self) -> None:
        """Discard an unfinished profile at the training's end or interruption, and print that there is none."""
        if self._done:
            return
        self._done = True
        if self._before >= 0:
            self._profiler.stop(None)
        if self._trained:
            print_error(
                "no profile so far: {count} steps from step {first} on were asked for (tensorboard.profile_steps), in "
                "whole executions, and the training is at step {step}",
                count=self._count,
                first=self._first,
                step=self._trained,
            )
