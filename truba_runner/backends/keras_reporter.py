"""Tells how a Keras training goes on: in `progress.json`, in `history.csv` and in the log."""

from __future__ import annotations

import sys
import time
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.keras_plan import Plan


class Reporter:
    """Sets each epoch's order, and tells of steps and epochs: in `progress.json`, `history.csv` and the log."""

    def __init__(self, context: Context, model: Any, plan: Plan) -> None:
        """`rows` are those of `history.csv`, one a finished epoch."""
        self._context = context
        self._model = model
        self._plan = plan
        self._epoch = 0
        # Both are moved back by what an interrupted start has spent.
        self._started = self._epoch_started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []

    def callback(self) -> Any:
        """Itself, in Keras' form."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_train_begin=self._train_begin,
            on_epoch_begin=self._epoch_begin,
            on_train_batch_end=self._steps_end,
            on_epoch_end=self._epoch_end,
            on_train_end=lambda logs: self._write_history(durable=True),
        )

    def last_metrics(self) -> dict[str, float]:
        """The last epoch's, by name."""
        own = ("epoch", "learning_rate", "seconds")
        return {name: value for name, value in self.rows[-1].items() if name not in own} if self.rows else {}

    @property
    def seconds(self) -> float:
        """Spent on training until now, over all starts of the run."""
        return time.perf_counter() - self._started

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        now = time.perf_counter()
        return {"rows": list(self.rows), "seconds": self.seconds, "epoch_seconds": now - self._epoch_started}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        now = time.perf_counter()
        self.rows = state["rows"]
        self._started, self._epoch_started = now - state["seconds"], now - state["epoch_seconds"]
        # Rows that were written after the checkpoint would stand there twice.
        self._write_history(durable=True)

    def _train_begin(self, logs: dict[str, float]) -> None:
        epochs = self._context.experiment.train.epochs
        self._context.progress.update(epochs=epochs, steps_per_epoch=self._plan.steps)

    def _epoch_begin(self, epoch: int, logs: dict[str, float]) -> None:
        self._epoch = epoch
        self._epoch_started = time.perf_counter()
        self._plan.begin(epoch)

    def _steps_end(self, batch: int, logs: dict[str, float]) -> None:
        # Keras counts an epoch's last execution as if it had all of its steps.
        self._context.progress.step(self._epoch + 1, min(batch + 1, self._plan.steps or batch + 1), logs)

    def _epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        import keras

        metrics = {name: float(logs[name]) for name in sorted(logs, key=loss_first)}
        self.rows.append(
            {
                "epoch": epoch + 1,
                **metrics,
                "learning_rate": float(keras.ops.convert_to_numpy(self._model.optimizer.learning_rate)),
                "seconds": round(time.perf_counter() - self._epoch_started, 3),
            }
        )
        # While it trains a checkpoint has all rows too.
        self._write_history(durable=False)
        self._context.progress.epoch_end(epoch + 1, self._plan.steps, metrics)

    def _write_history(self, durable: bool) -> None:
        if self._context.rank:
            return
        try:
            self._context.run.write_history(self.rows, durable)
        except OSError as error:
            # The next epoch writes every row again.
            print(f"history.csv could not be written ({error}); training goes on", file=sys.stderr, flush=True)


def loss_first(name: str) -> tuple[bool, bool]:
    """Sorts metrics: training before validation, and the loss before all others."""
    return name.startswith("val_"), not name.endswith("loss")
