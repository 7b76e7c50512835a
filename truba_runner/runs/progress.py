"""How far a run has come, for those who watch: `progress.json` for programs, plain lines in the log for people."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from truba_runner.language import _
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.run_directory import RunDir

EVERY_SECONDS = 1.0
LINE_EVERY_SECONDS = 60.0
# Of the record of the start before, what is as true of this one.
_KEPT = ("epochs", "steps_per_epoch", "metrics", "warning")


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Names and values in one line; a value that is no number any more is `nan`."""
    return "  ".join(f"{name} {'nan' if value is None else f'{value:.4f}'}" for name, value in metrics.items())


class Progress:
    """The one writer of a run's `progress.json`. A disk that refuses it is told of once and stops no training."""

    def __init__(self, run: RunDir, job_id: str, writes: bool = True) -> None:
        """`writes` is false on every rank but the first."""
        self._run = run
        self._writes = writes
        self._disk_complained = False
        self._written = 0.0
        self._line_printed = time.monotonic()
        # What the start before this one has left.
        self._before = run.progress() if writes else {}
        # Called after each step with its number over all epochs.
        self.watcher: Callable[[int], None] | None = None
        # Called after each epoch.
        self.epoch_watcher: Callable[[], None] | None = None
        self.record: dict[str, Any] = {
            "state": "running",
            "job_id": job_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
        }

    def stand_at(self, position: Position, steps_per_epoch: int = 0) -> None:
        """The checkpoint that the run goes on from, told with the next update: else nothing is until the next step.

        `steps_per_epoch`: 0 where it is not known; then it is what the start before this one said.
        """
        if position == Position(0, 0):
            return
        before = {key: value for key, value in self._before.items() if key in _KEPT}
        steps = steps_per_epoch or self.record.get("steps_per_epoch") or before.get("steps_per_epoch", 0)
        # An epoch that is over is told as such, and not as the next one, which there may not be.
        epoch, step = (position.epoch + 1, position.step) if position.step else (position.epoch, steps)
        self.record = {**before, **self.record, "epoch": epoch, "step": step, "steps_per_epoch": steps}

    def update(self, **values: Any) -> None:
        """Changes the record and writes it now."""
        self.record.update(values, updated=time.time())
        self._written = time.monotonic()
        if not self._writes:
            return
        try:
            self._run.write_progress(self.record)
        except OSError as error:
            if "state" in values:
                # How it ended is worth more than that nobody sees half of it.
                with suppress(OSError):
                    self._run.overwrite_progress(self.record)
            elif not self._disk_complained:
                told = _("{file} could not be written ({error}); training goes on", file="progress.json", error=error)
                print(told, file=sys.stderr, flush=True)
                self._disk_complained = True

    def tell_for_rank_0(self) -> None:
        """Writes the record from another rank, once: it has failed, and rank 0 will not learn why."""
        self._writes = True
        self.update()

    def step(self, epoch: int, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """After each step: writes when the last record is a second old. `epoch` and `step` count from 1.

        `total`: steps over all epochs, where those have different numbers.
        """
        if self.watcher is not None:
            self.watcher(total or (epoch - 1) * int(self.record["steps_per_epoch"]) + step)
        now = time.monotonic()
        if now - self._written >= EVERY_SECONDS:
            self.update(epoch=epoch, step=step, metrics=dict(metrics))
        if now - self._line_printed >= LINE_EVERY_SECONDS:
            self._print(epoch, step, metrics)

    def epoch_end(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """After each epoch: writes and prints a line; warns once where the loss is no number any more."""
        loss = metrics.get("loss")
        if loss is not None and not math.isfinite(loss) and "warning" not in self.record:
            self.record["warning"] = _(
                "the training loss is {loss} at the end of epoch {epoch}; nothing is learnt from it",
                loss=loss,
                epoch=epoch,
            )
            if self._writes:
                print(_("WARNING: {text}", text=self.record["warning"]), file=sys.stderr, flush=True)
        self.update(epoch=epoch, step=step, metrics=dict(metrics))
        self._print(epoch, step, metrics)
        if self.epoch_watcher is not None and self._writes:
            self.epoch_watcher()

    def _print(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self._line_printed = time.monotonic()
        if self._writes:
            # 0: how many steps an epoch has is not known before its end.
            epochs, steps = self.record.get("epochs", "?"), self.record.get("steps_per_epoch") or "?"
            print(f"epoch {epoch}/{epochs}  step {step}/{steps}  {format_metrics(metrics)}", flush=True)
