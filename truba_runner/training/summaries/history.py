"""The rows of `history.csv` and the clock of a training, over all starts of the run."""

from __future__ import annotations

import time
from typing import Any

from truba_runner.log import training_continues
from truba_runner.training.backend import Context
from truba_runner.training.summaries.curves import Curves


class History:
    """Base class of a backend's reporter; `rows` holds a row of `history.csv` for each finished epoch."""

    # Columns of `history.csv` that are not metrics.
    COLUMNS: tuple[str, ...] = ("epoch", "learning_rate", "seconds")

    def __init__(self, context: Context, curves: Curves) -> None:
        """Start the clock."""
        self._context, self.curves = context, curves
        # On resuming, both are moved back by the time that earlier starts spent.
        self._started = self._epoch_started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        """Seconds spent on training so far, over all starts of the run."""
        return time.perf_counter() - self._started

    @property
    def epoch_seconds(self) -> float:
        """Seconds spent on the current epoch, rounded for its row."""
        return round(time.perf_counter() - self._epoch_started, 3)

    def last_metrics(self) -> dict[str, float]:
        """Return the last epoch's metrics by name."""
        return {name: value for name, value in self.rows[-1].items() if name not in self.COLUMNS} if self.rows else {}

    def get_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds of this reporter."""
        spent = {"seconds": self.seconds, "epoch_seconds": time.perf_counter() - self._epoch_started}
        return {"rows": [dict(row) for row in self.rows], **spent}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned and rewrite `history.csv`."""
        now = time.perf_counter()
        self.rows = state["rows"]
        self._started, self._epoch_started = now - state["seconds"], now - state["epoch_seconds"]
        # Rows that were written after the checkpoint would appear twice.
        self._write_history()

    def _write_history(self, durable: bool = True) -> None:
        if not self._context.rank:
            # After a failure, the next epoch writes every row again.
            with training_continues("history.csv"):
                self._context.run.write_history(self.rows, durable)
