"""Report a run's progress: `progress.json` for programs, plain lines in the log for people."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.record_shapes import ProgressRecord, Stage
from truba_runner.runs.run_directory import RunDir

EVERY_SECONDS = 1.0
LINE_EVERY_SECONDS = 60.0


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Format names and values as one line; a value that became NaN or infinite (None in the record) as `nan`."""
    return "  ".join(f"{name} {'nan' if value is None else f'{value:.4f}'}" for name, value in metrics.items())


class Progress:
    """The one writer of a run's `progress.json`. A write error is printed once; training continues."""

    def __init__(self, run: RunDir, job_id: str, writes: bool = True) -> None:
        """Read the previous start's record; `writes` is False on all ranks but rank 0."""
        self._run = run
        self._writes = writes
        self._disk_complained = False
        self._written = 0.0
        self._line_printed = time.monotonic()
        # Record of the previous start.
        self._before = run.progress() if writes else ProgressRecord()
        # Called after each step with its number over all epochs.
        self.watcher: Callable[[int], None] | None = None
        # Called after each epoch.
        self.epoch_watcher: Callable[[], None] | None = None
        self.record = ProgressRecord(Stage.RUNNING, job_id, socket.gethostname(), os.getpid(), started=time.time())

    def stand_at(self, position: Position, steps_per_epoch: int = 0) -> None:
        """Set the initial position to the checkpoint's, written with the next update, so before the first step.

        `steps_per_epoch`: 0 if unknown; then the previous start's value is used.
        """
        if position == Position(0, 0):
            return
        own, before = self.record, self._before
        steps = steps_per_epoch or own.steps_per_epoch or before.steps_per_epoch or 0
        # After a whole epoch, show that epoch at its last step: there may be no next epoch.
        epoch, step = (position.epoch + 1, position.step) if position.step else (position.epoch, steps)
        self.record = replace(
            own,
            epoch=epoch,
            epochs=own.epochs or before.epochs,
            step=step,
            steps_per_epoch=steps,
            metrics=own.metrics or before.metrics,
            warning=own.warning or before.warning,
        )

    def set_steps_per_epoch(self, steps: int) -> None:
        """Set the number of steps in an epoch, written with the next update."""
        if steps != self.record.steps_per_epoch:
            self.record = replace(self.record, steps_per_epoch=steps)

    def update(self, **values: Any) -> None:
        """Change the record and write it now."""
        self.record = replace(self.record, **values, updated=time.time())
        self._written = time.monotonic()
        if not self._writes:
            return
        try:
            self._run.write_progress(self.record)
        except OSError as error:
            if "state" in values:
                # The final state matters more than that no reader ever sees half a record.
                with suppress(OSError):
                    self._run.overwrite_progress(self.record)
            elif not self._disk_complained:
                print_error(
                    "{file} could not be written ({error}); training continues", file="progress.json", error=error
                )
                self._disk_complained = True

    def tell_for_rank_0(self) -> None:
        """Write the record from a rank that has failed, since rank 0 will not learn why."""
        self._writes = True
        self.update()

    def step(self, epoch: int, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Handle the end of a step: write the record if the last one is a second old. `epoch`, `step` count from 1.

        `total`: steps done over all epochs, if epochs differ in their number of steps.
        """
        if self.watcher is not None:
            self.watcher(total or (epoch - 1) * (self.record.steps_per_epoch or 0) + step)
        now = time.monotonic()
        if now - self._written >= EVERY_SECONDS:
            self.update(epoch=epoch, step=step, metrics=dict(metrics))
        if now - self._line_printed >= LINE_EVERY_SECONDS:
            self._print(epoch, step, metrics)

    def epoch_end(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Handle the end of an epoch: write the record and print a line; warn once if the loss is NaN or infinite."""
        loss = metrics.get("loss")
        if loss is not None and not math.isfinite(loss) and not self.record.warning:
            warning = _(
                "the training loss is {loss} at the end of epoch {epoch}; the network no longer learns",
                loss=loss,
                epoch=epoch,
            )
            self.record = replace(self.record, warning=warning)
            if self._writes:
                print(_("WARNING: {text}", text=warning), file=sys.stderr, flush=True)
        self.update(epoch=epoch, step=step, metrics=dict(metrics))
        self._print(epoch, step, metrics)
        if self.epoch_watcher is not None and self._writes:
            self.epoch_watcher()

    def _print(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self._line_printed = time.monotonic()
        if self._writes:
            # 0: the number of steps per epoch is unknown before the first epoch's end.
            epochs, steps = self.record.epochs or "?", self.record.steps_per_epoch or "?"
            print(f"epoch {epoch}/{epochs}  step {step}/{steps}  {format_metrics(metrics)}", flush=True)
