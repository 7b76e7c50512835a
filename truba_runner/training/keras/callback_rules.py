"""What Keras' own callbacks cannot do here, told before the training: refused, warned of, or mended."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.compile import follows_schedule


def check(context: Context, model: Any, plan: Plan, callbacks: Iterable[Any], whole_model: bool) -> None:
    """Looks at those of `train.callbacks`; `whole_model`: Keras can save the model as `.keras`.

    Raises:
        truba_runner.errors.Failed: one of them would end the training, or undo what the run does by itself.
    """
    for index, callback in enumerate(callbacks):
        name = type(callback).__name__
        where = f"train.callbacks[{index}]"
        for reason in _refused(model, callback, whole_model):
            raise Failed(f"{where}: {name}: {reason}")
        for reason in _warned(context, plan, callback) if context.rank == 0 else ():
            print(_("WARNING: {text}", text=f"{where}: {name}: {reason}"), file=sys.stderr, flush=True)


def _refused(model: Any, callback: Any, whole_model: bool) -> Iterator[str]:
    import keras

    known = keras.callbacks
    if isinstance(callback, known.BackupAndRestore):
        yield _(
            "the run goes on by itself after an interruption, to the bit, and this would set other weights and another "
            "epoch. Leave it out."
        )
    sets_rate = isinstance(callback, (known.LearningRateScheduler, known.ReduceLROnPlateau))
    if sets_rate and follows_schedule(model.optimizer):
        yield _(
            "it sets the learning rate, and the optimizer follows a schedule, over which none can be set. Leave one of "
            "the two out."
        )
    if isinstance(callback, known.RemoteMonitor) and importlib.util.find_spec("requests") is None:
        yield _("it needs the package requests, which is not installed.")
    if isinstance(callback, known.ModelCheckpoint) and not callback.save_weights_only and not whole_model:
        yield _(
            "Keras cannot save this model as a whole, as told above. Set save_weights_only: true and a filepath that "
            "ends in .weights.h5."
        )


def _warned(context: Context, plan: Plan, callback: Any) -> Iterator[str]:
    import keras

    together = context.experiment.train.steps_per_execution
    # 0: how many calls an epoch has is not known yet.
    calls = -(-plan.steps // together)
    if isinstance(callback, keras.callbacks.TensorBoard) and isinstance(every := callback.update_freq, int):
        if every > 1 and (not calls or calls % every):
            yield _(
                "with update_freq={every} Keras writes an epoch's metrics, histograms and pictures only where the "
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


def keep_rows(callbacks: Iterable[Any], goes_on: bool) -> None:
    """Lets Keras' CSVLogger join the exact resume: its file has as many rows as the checkpoint has epochs."""
    import keras

    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not hasattr(callback, "get_state"):
            callback.append = callback.append or goes_on
            callback.get_state = _Rows(callback).get_state
            callback.set_state = _Rows(callback).set_state


class _Rows:
    """How long a CSVLogger's file is; it is cut to that where a run goes on."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def get_state(self) -> dict[str, Any]:
        """After the epoch's row is written."""
        path = self._logger.filename
        return {"size": os.path.getsize(path) if os.path.exists(path) else 0}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """After the file was opened to be gone on with; rows of epochs that are trained again go."""
        if os.path.getsize(self._logger.filename) > state["size"]:
            os.truncate(self._logger.filename, state["size"])
        self._logger.append_header = not state["size"]
