"""Write a fastai training's progress to `progress.json`, `history.csv`, TensorBoard's event files and the log.

Metrics are named as in the Keras backend: `loss` for training, `val_loss` and `val_error_rate` for validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from truba_runner.older_python import zip_equal
from truba_runner.training.backend import Context
from truba_runner.training.summaries.curves import Curves
from truba_runner.training.summaries.history import History


class Reporter(History):
    """Reporter of a training; `steps` counts the trained steps over all stages."""

    COLUMNS = ("epoch", "stage", "learning_rate", "first_learning_rate", "seconds")

    def __init__(self, context: Context, learner: Any, epochs: int, curves: Curves) -> None:
        """Start the clock; `epochs` is the number of epochs of all stages together."""
        super().__init__(context, curves)
        self._learner = learner
        self._stage, self._first_epoch, self._steps_per_epoch = 0, 0, 0
        self.steps = 0
        context.progress.update(epochs=epochs)

    def get_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds of this reporter."""
        return {**super().get_state(), "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        super().set_state(state)
        self.steps = state["steps"]
        self.curves.begins(self.steps)

    def stage_begins(self, stage: int, first_epoch: int, steps: int) -> None:
        """Begin stage `stage`; `stage` and `first_epoch` (over all stages) count from 0. `steps`: steps an epoch."""
        self._stage, self._first_epoch, self._steps_per_epoch = stage, first_epoch, steps
        self._context.progress.update(steps_per_epoch=steps)

    def epoch_begins(self) -> None:
        """Start the epoch's clock."""
        self._epoch_started = time.perf_counter()
        self.curves.examples_per_step = self._learner.dls.train.bs * self._context.tasks
        self.curves.begins(self.steps)

    def trained(self, epoch: int, step: int) -> None:
        """Report a trained step; the stage's `epoch` counts from 0, `step` from 1."""
        self.steps += 1
        loss = float(self._learner.smooth_loss)
        self.curves.trained(self.steps, self._step_values)
        self._context.progress.step(self._first_epoch + epoch + 1, step, {"loss": loss}, self.steps)

    def _step_values(self) -> dict[str, float]:
        return {"batch_loss": float(self._learner.loss.detach()), "learning_rate": self._rates()[-1]}

    def epoch_ends(self, epoch: int) -> dict[str, Any]:
        """Report a finished epoch and return its row."""
        number, metrics = self._first_epoch + epoch + 1, self._metrics()
        first, last = self._rates()[0], self._rates()[-1]
        rates = {"learning_rate": last} if first == last else {"learning_rate": last, "first_learning_rate": first}
        row = {"epoch": number, "stage": self._stage + 1, **metrics, **rates, "seconds": self.epoch_seconds}
        self.rows.append(row)
        self._write_history()
        self.curves.epoch_ends(number, metrics, last)
        self._context.progress.epoch_end(number, self._steps_per_epoch, metrics)
        return row

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._learner.opt.hypers]

    def _metrics(self) -> dict[str, float]:
        recorder = self._learner.recorder
        names = list(recorder.metric_names[1:])  # The first name is the epoch; the last, the time, has no value.
        if recorder.cancel_train:  # Then fastai's row has no training values.
            names = [name for name in names if not name.startswith("train_")]
        return _numbers(zip(names, recorder.values[-1]))


def validation_metrics(learner: Any) -> dict[str, float]:
    """Return the metrics of the last pass through the validation set, by their names in `history.csv`."""
    return _numbers([("valid_loss", learner.recorder.loss.value), *((one.name, one.value) for one in learner.metrics)])


def _numbers(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Return metrics by their names in `history.csv`; leave out values that are not numbers.

    The second metric of a name is called `NAME_2`; a metric of several numbers becomes `NAME[0]`, `NAME[1]`…
    """
    numbers: dict[str, float] = {}
    for name, value in pairs:
        ours = name.removeprefix("train_") if name.startswith("train_") else f"val_{name.removeprefix('valid_')}"
        values = _floats(value)
        endings = [""] if len(values) == 1 else [f"[{index}]" for index in range(len(values))]
        number, free = 1, ours
        while endings and f"{free}{endings[0]}" in numbers:
            number += 1
            free = f"{ours}_{number}"
        numbers.update({f"{free}{ending}": one for ending, one in zip_equal(endings, values)})
    return numbers


def _floats(value: Any) -> list[float]:
    try:
        return [float(value)]
    except (TypeError, ValueError, RuntimeError):
        pass
    try:
        return [float(one) for one in value]
    except (TypeError, ValueError, RuntimeError):
        return []
