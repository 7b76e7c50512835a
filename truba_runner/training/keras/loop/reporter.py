"""Report a Keras training in `progress.json`, `history.csv`, TensorBoard's event files and the log."""

from __future__ import annotations

import sys
import time
from typing import Any

from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.summaries.curves import Curves


class Reporter:
    """A reporter of steps and epochs, which also sets each epoch's order."""

    def __init__(self, context: Context, model: Any, plan: Plan, curves: Curves) -> None:
        """The attribute `rows` holds the rows of `history.csv`, one per finished epoch."""
        self._context = context
        self._model = model
        self._plan = plan
        self.curves = curves
        curves.examples_per_step = plan.examples_per_step
        self._epoch = 0
        # Steps of finished epochs, and of the current one.
        self._steps = self._done = 0
        # Both are moved back by the seconds that interrupted starts spent.
        self._started = self._epoch_started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []

    def callback(self) -> Any:
        """Return this reporter as a Keras callback."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_train_begin=self._train_begin,
            on_epoch_begin=self._epoch_begin,
            on_train_batch_end=self._steps_end,
            on_epoch_end=self._epoch_end,
            on_train_end=lambda logs: self._write_history(durable=True),
        )

    def last_metrics(self) -> dict[str, float]:
        """Return the last epoch's metrics by name."""
        own = ("epoch", "learning_rate", "seconds")
        return {name: value for name, value in self.rows[-1].items() if name not in own} if self.rows else {}

    @property
    def steps(self) -> int:
        """Batches trained so far, over all epochs and all starts of the run."""
        return self._steps + self._done

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all starts of the run."""
        return time.perf_counter() - self._started

    def get_state(self) -> dict[str, Any]:
        """Return the reporter's part of a checkpoint."""
        now = time.perf_counter()
        spent = {"seconds": self.seconds, "epoch_seconds": now - self._epoch_started}
        return {"rows": list(self.rows), "steps": self._steps, "done": self._done, **spent}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        now = time.perf_counter()
        self.rows, self._steps, self._done = state["rows"], state["steps"], state["done"]
        self._started, self._epoch_started = now - state["seconds"], now - state["epoch_seconds"]
        self.curves.begins(self.steps)
        # Rows that were written after the checkpoint would appear twice.
        self._write_history(durable=True)

    def _train_begin(self, logs: dict[str, float]) -> None:
        epochs = self._context.experiment.train.epochs
        self._context.progress.update(epochs=epochs, steps_per_epoch=self._plan.steps)

    def _epoch_begin(self, epoch: int, logs: dict[str, float]) -> None:
        self._epoch, self._done = epoch, 0
        self._epoch_started = time.perf_counter()
        self._plan.begin(epoch)
        self.curves.begins(self._steps)

    def _steps_end(self, batch: int, logs: dict[str, float]) -> None:
        self._done = self._plan.trained(batch + 1)
        # A PyDataset's number of steps is known once its epoch begins.
        if self._plan.steps:
            self._context.progress.set_steps_per_epoch(self._plan.steps)
        self.curves.trained(self.steps, lambda: self._step_values(logs))
        self._context.progress.step(self._epoch + 1, self._done, logs, self.steps)

    def _step_values(self, logs: dict[str, float]) -> dict[str, float]:
        return {**{f"batch_{name}": logs[name] for name in logs}, "learning_rate": self._learning_rate()}

    def _learning_rate(self) -> float:
        import keras

        return float(keras.ops.convert_to_numpy(self._model.optimizer.learning_rate))

    def _epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        steps = self._done
        self._steps, self._done = self.steps, 0
        metrics = {name: float(logs[name]) for name in sorted(logs, key=loss_first)}
        rate, seconds = self._learning_rate(), round(time.perf_counter() - self._epoch_started, 3)
        self.rows.append({"epoch": epoch + 1, **metrics, "learning_rate": rate, "seconds": seconds})
        self.curves.epoch_ends(epoch + 1, metrics, rate)
        # No fsync: during training a checkpoint holds all rows too.
        self._write_history(durable=False)
        # Only now is the epoch's true length known in all cases.
        self._context.progress.set_steps_per_epoch(self._plan.steps or steps)
        self._context.progress.epoch_end(epoch + 1, steps, metrics)

    def _write_history(self, durable: bool) -> None:
        if self._context.rank:
            return
        try:
            self._context.run.write_history(self.rows, durable)
        except OSError as error:
            # The next epoch writes every row again.
            print(
                _("history.csv could not be written ({error}); training goes on", error=error),
                file=sys.stderr,
                flush=True,
            )


def loss_first(name: str) -> tuple[bool, bool]:
    """Return a sort key for metrics: training before validation, the loss before all others."""
    return name.startswith("val_"), not name.endswith("loss")
