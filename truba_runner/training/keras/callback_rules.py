"""Refuse, warn about or adapt Keras' own callbacks that do not work here, before the training begins."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.compile import follows_schedule


def check(context: Context, model: Any, plan: Plan, callbacks: Iterable[Any], whole_model: bool) -> None:
    """Check the callbacks of `train.callbacks`; `whole_model`: Keras can save the model as `.keras`.

    Raises:
        truba_runner.errors.Failed: a callback would end the training, or conflict with what the run does itself.
    """
    for index, callback in enumerate(callbacks):
        name = type(callback).__name__
        where = f"train.callbacks[{index}]"
        for reason in _refused(model, callback, whole_model):
            raise Failed(f"{where}: {name}: {reason}")
        for reason in _warned(context, plan, callback) if context.rank == 0 else ():
            warn(f"{where}: {name}: {reason}")


def _refused(model: Any, callback: Any, whole_model: bool) -> Iterator[str]:
    import keras

    known = keras.callbacks
    if isinstance(callback, known.BackupAndRestore):
        yield _(
            "the run resumes by itself after an interruption, bit for bit, and this would set other weights and "
            "another epoch. Leave it out."
        )
    sets_rate = isinstance(callback, (known.LearningRateScheduler, known.ReduceLROnPlateau))
    if sets_rate and follows_schedule(model.optimizer):
        yield _(
            "it sets the learning rate, but the optimizer follows a schedule, which does not allow that. Leave one "
            "of the two out."
        )
    if isinstance(callback, known.RemoteMonitor) and importlib.util.find_spec("requests") is None:
        yield _("it needs the package requests, which is not installed.")
    if isinstance(callback, known.ModelCheckpoint) and not callback.save_weights_only and not whole_model:
        yield _(
            "Keras cannot save this model as a whole, as reported above. Set save_weights_only: true and a "
            "filepath that ends in .weights.h5."
        )


def _warned(context: Context, plan: Plan, callback: Any) -> Iterator[str]:
    import keras

    together = context.experiment.train.steps_per_execution
    # 0: the number of calls an epoch is not known yet.
    calls = -(-plan.steps // together)
    if isinstance(callback, keras.callbacks.TensorBoard) and isinstance(every := callback.update_freq, int):
        if every > 1 and (not calls or calls % every):
            yield _(
                "with update_freq={every} Keras writes an epoch's metrics, histograms and pictures only if the "
                "number of calls so far is a multiple of {every}; an epoch has {calls}. Leave update_freq out: "
                "tensorboard.every_steps={steps} writes curves by step.",
                every=every,
                calls=calls or "?",
                steps=every * together,
            )
    if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq != "epoch":
        if together > 1 and plan.steps % together:
            yield _(
                "Keras counts the last execution of an epoch as if it had all of its {together} steps: files are named "
                "after, and saved at, other steps than save_freq={every} says.",
                together=together,
                every=callback.save_freq,
            )


def keep_rows(callbacks: Iterable[Any], resumes: bool) -> None:
    """Make Keras' CSVLogger resume exactly: its file keeps only the rows of the checkpoint's epochs."""
    import keras

    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not hasattr(callback, "get_state"):
            callback.append = callback.append or resumes
            callback.get_state = _Rows(callback).get_state
            callback.set_state = _Rows(callback).set_state


class _Rows:
    """The state of a CSVLogger: the size of its file, which is truncated to that on resuming."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def get_state(self) -> dict[str, Any]:
        """Return the file's size; called after the epoch's row is written."""
        path = self._logger.filename
        return {"size": os.path.getsize(path) if os.path.exists(path) else 0}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Remove the rows of epochs that are trained again; called after the file is opened for appending."""
        if os.path.getsize(self._logger.filename) > state["size"]:
            os.truncate(self._logger.filename, state["size"])
        self._logger.append_header = not state["size"]
