"""Report a Keras training in `progress.json`, `history.csv`, TensorBoard's event files and the log."""

from __future__ import annotations

import time
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.summaries.curves import Curves
from truba_runner.training.summaries.history import History


class Reporter(History):
    """A reporter of steps and epochs, which also sets each epoch's order."""

    def __init__(self, context: Context, model: Any, plan: Plan, curves: Curves) -> None:
        """Start the clock."""
        super().__init__(context, curves)
        self._model, self._plan = model, plan
        curves.examples_per_step = plan.examples_per_step
        self._epoch = 0
        # Steps of finished epochs, and of the current one.
        self._steps = self._done = 0

    def callback(self) -> Any:
        """Return this reporter as a Keras callback."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_train_begin=self._train_begin,
            on_epoch_begin=self._epoch_begin,
            on_train_batch_end=self._steps_end,
            on_epoch_end=self._epoch_end,
            on_train_end=lambda logs: self._write_history(),
        )

    @property
    def steps(self) -> int:
        """Batches trained so far, over all epochs and all starts of the run."""
        return self._steps + self._done

    def get_state(self) -> dict[str, Any]:
        """Return the reporter's part of a checkpoint."""
        return {**super().get_state(), "steps": self._steps, "done": self._done}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        super().set_state(state)
        self._steps, self._done = state["steps"], state["done"]
        self.curves.begins(self.steps)

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
        rate = self._learning_rate()
        self.rows.append({"epoch": epoch + 1, **metrics, "learning_rate": rate, "seconds": self.epoch_seconds})
        self.curves.epoch_ends(epoch + 1, metrics, rate)
        # No fsync: during training a checkpoint holds all rows too.
        self._write_history(durable=False)
        # Only now is the epoch's true length known in all cases.
        self._context.progress.set_steps_per_epoch(self._plan.steps or steps)
        self._context.progress.epoch_end(epoch + 1, steps, metrics)


def loss_first(name: str) -> tuple[bool, bool]:
    """Return a sort key for metrics: training before validation, the loss before all others."""
    return name.startswith("val_"), not name.endswith("loss")
