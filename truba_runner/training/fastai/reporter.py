"""Tells how a fastai training goes on: in `progress.json`, `history.csv`, TensorBoard's event files and the log.

Names are those of the Keras backend: `loss` is the training's, `val_loss` and `val_error_rate` the validation's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.summaries.curves import Curves


class Reporter:
    """`rows` are those of `history.csv`, one a finished epoch, over all stages; `steps` those trained in all."""

    def __init__(self, context: Context, learner: Any, epochs: int, curves: Curves) -> None:
        """`epochs` is how many all stages have together."""
        self._context, self._learner, self.curves = context, learner, curves
        self._stage, self._first_epoch, self._steps_per_epoch = 0, 0, 0
        # Both are moved back by what an interrupted start has spent.
        self._started = self._epoch_started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.steps = 0
        context.progress.update(epochs=epochs)

    @property
    def seconds(self) -> float:
        """Spent on training until now, over all starts of the run."""
        return time.perf_counter() - self._started

    def last_metrics(self) -> dict[str, float]:
        """The last epoch's, by name."""
        own = ("epoch", "stage", "learning_rate", "first_learning_rate", "seconds")
        return {name: value for name, value in self.rows[-1].items() if name not in own} if self.rows else {}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        now = time.perf_counter()
        spent = {"seconds": self.seconds, "epoch_seconds": now - self._epoch_started}
        return {"rows": [dict(row) for row in self.rows], "steps": self.steps, **spent}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        now = time.perf_counter()
        self.rows, self.steps = state["rows"], state["steps"]
        self._started, self._epoch_started = now - state["seconds"], now - state["epoch_seconds"]
        self.curves.begins(self.steps)
        # Rows that were written after the checkpoint would stand there twice.
        self._write_history()

    def stage_begins(self, stage: int, first_epoch: int, steps: int) -> None:
        """A stage that trains, counted from 0 as its first epoch is over all stages; `steps`: of each epoch."""
        self._stage, self._first_epoch, self._steps_per_epoch = stage, first_epoch, steps
        self._context.progress.update(steps_per_epoch=steps)

    def epoch_begins(self) -> None:
        """Starts its clock."""
        self._epoch_started = time.perf_counter()
        self.curves.examples_per_step = self._learner.dls.train.bs * self._context.tasks
        self.curves.begins(self.steps)

    def trained(self, epoch: int, step: int) -> None:
        """After each step; `epoch`, of the stage, counts from 0, and `step` from 1."""
        self.steps += 1
        loss = float(self._learner.smooth_loss)
        self.curves.trained(self.steps, self._step_values)
        self._context.progress.step(self._first_epoch + epoch + 1, step, {"loss": loss}, self.steps)

    def _step_values(self) -> dict[str, float]:
        return {"batch_loss": float(self._learner.loss.detach()), "learning_rate": self._rates()[-1]}

    def epoch_ends(self, epoch: int) -> dict[str, Any]:
        """After each epoch; returns its row."""
        number, metrics = self._first_epoch + epoch + 1, self._metrics()
        first, last = self._rates()[0], self._rates()[-1]
        rates = {"learning_rate": last} if first == last else {"learning_rate": last, "first_learning_rate": first}
        seconds = round(time.perf_counter() - self._epoch_started, 3)
        row = {"epoch": number, "stage": self._stage + 1, **metrics, **rates, "seconds": seconds}
        self.rows.append(row)
        self._write_history()
        self.curves.epoch_ends(number, metrics, last)
        self._context.progress.epoch_end(number, self._steps_per_epoch, metrics)
        return row

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._learner.opt.hypers]

    def _metrics(self) -> dict[str, float]:
        recorder = self._learner.recorder
        names = list(recorder.metric_names[1:])  # Without the epoch; the time has no value, and comes last.
        if recorder.cancel_train:  # Then fastai's row begins with the validation's.
            names = [name for name in names if not name.startswith("train_")]
        return _numbers(zip(names, recorder.values[-1], strict=False))

    def _write_history(self) -> None:
        if self._context.rank:
            return
        try:
            self._context.run.write_history(self.rows)
        except OSError as error:
            # The next epoch writes every row again.
            print(
                _("history.csv could not be written ({error}); training goes on", error=error),
                file=sys.stderr,
                flush=True,
            )


def validation_metrics(learner: Any) -> dict[str, float]:
    """What the last pass through the validation set came to, by the names of `history.csv`."""
    return _numbers([("valid_loss", learner.recorder.loss.value), *((one.name, one.value) for one in learner.metrics)])


def _numbers(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """By our names. The second of one name is called `NAME_2`, and a metric of several numbers `NAME[0]`, `NAME[1]`…

    Values that are no numbers are left out.
    """
    found: dict[str, float] = {}
    for name, value in pairs:
        ours = name.removeprefix("train_") if name.startswith("train_") else f"val_{name.removeprefix('valid_')}"
        values = _floats(value)
        endings = [""] if len(values) == 1 else [f"[{index}]" for index in range(len(values))]
        number, free = 1, ours
        while endings and f"{free}{endings[0]}" in found:
            number += 1
            free = f"{ours}_{number}"
        found.update({f"{free}{ending}": one for ending, one in zip(endings, values, strict=True)})
    return found


def _floats(value: Any) -> list[float]:
    try:
        return [float(value)]
    except (TypeError, ValueError, RuntimeError):
        pass
    try:
        return [float(one) for one in value]
    except (TypeError, ValueError, RuntimeError):
        return []
