"""Callbacks beside those that every run has: the config's own, and the models that it keeps."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from truba_runner.backends import Context, keras_callback_rules
from truba_runner.backends.job_calls import entry_of
from truba_runner.backends.keras_named import make_class
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_saving import Saving
from truba_runner.errors import Failed, nearest
from truba_runner.language import _


def extra_callbacks(context: Context, model: Any, plan: Plan, saving: Saving, goes_on: bool) -> list[Any]:
    """What the config adds to `fit`, in the order of `train.callbacks`; the kept models come after them.

    `goes_on`: the run does, from a checkpoint.

    Raises:
        truba_runner.errors.Failed: a callback cannot be made, or cannot work here.
    """
    experiment = context.experiment
    made = [make_callback(context, index, given) for index, given in enumerate(experiment.train.callbacks)]
    keras_callback_rules.check(context, model, plan, made, saving.whole_model)
    keras_callback_rules.keep_rows(made, goes_on)
    if context.rank == 0 and (experiment.checkpoint.model_each_epoch or experiment.checkpoint.best_model):
        made.append(_kept_models(context, saving))
    return made


# -- from the config -------------------------------------------------------------------------------------------


def make_callback(context: Context, index: int, given: Any) -> Any:
    """A Keras callback out of `NAME` or `{class_name: NAME, config: {…}}`; NAME with a dot is an import path.

    Raises:
        truba_runner.errors.Failed: there is no such callback, or it does not take these arguments.
    """
    import keras

    where = f"train.callbacks[{index}]"
    name, _settings = entry_of(where, given, "EarlyStopping")
    callback = make_class(context, where, given, keras.callbacks)
    if not isinstance(callback, keras.callbacks.Callback):
        raise Failed(
            _(
                "{where}: {name} made a {kind}, which is not a keras.callbacks.Callback.",
                where=where,
                name=name,
                kind=type(callback).__name__,
            )
        )
    return callback


# -- the models that are kept ----------------------------------------------------------------------------------


def _kept_models(context: Context, saving: Saving) -> Any:
    """A model for use after each epoch, and the best of them: ModelCheckpoint's work, with files that are whole."""
    import keras

    wanted, folder = context.experiment.checkpoint, context.run.models

    class KeptModels(keras.callbacks.Callback):  # type: ignore[misc]
        """Saves to `checkpoints/models/`; a disk that refuses it stops no training."""

        best: float | None = None

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            """Saves what the config wants of this epoch's model."""
            names = [f"model_{epoch + 1}"] if wanted.model_each_epoch else []
            if wanted.best_model and self._is_better(logs or {}):
                names.append("best")
            for name in names:
                self._save(name)

        def get_state(self) -> dict[str, Any]:
            """What an interrupted run needs to go on."""
            return {"best": self.best}

        def set_state(self, state: Mapping[str, Any]) -> None:
            """Goes on from `get_state`."""
            self.best = state["best"]

        def _is_better(self, logs: Mapping[str, float]) -> bool:
            value = logs.get(wanted.monitor)
            if value is None:
                _tell(
                    _(
                        "checkpoint.monitor={monitor}: no such metric. {nearest}",
                        monitor=wanted.monitor,
                        nearest=nearest(wanted.monitor, logs),
                    )
                )
                return False
            if math.isnan(value):
                return False
            better = self.best is None or (value < self.best if wanted.mode == "min" else value > self.best)
            self.best = float(value) if better else self.best
            return better

        def _save(self, name: str) -> None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                saving.save(folder, name)
            except Exception as error:  # It may be Keras' of a disk that is full.
                _tell(_("{name} could not be saved ({error}); training goes on", name=name, error=error))

    return KeptModels()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
