"""Callbacks beside those that every run has: the config's own, and the models that it keeps."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.job_calls import entry_of, imported, make
from truba_runner.backends.keras_preprocessing import Preprocessing
from truba_runner.errors import Failed, nearest
from truba_runner.full_disk import whole
from truba_runner.language import _


def extra_callbacks(context: Context, preprocessing: Preprocessing | None) -> list[Any]:
    """What the config adds to `fit`, in the order of `train.callbacks`; the kept models come after them.

    Raises:
        truba_runner.errors.Failed: a callback cannot be made.
    """
    experiment = context.experiment
    made = [make_callback(context, index, given) for index, given in enumerate(experiment.train.callbacks)]
    if context.rank == 0 and (experiment.checkpoint.model_each_epoch or experiment.checkpoint.best_model):
        made.append(_kept_models(context, preprocessing))
    return made


# -- from the config -------------------------------------------------------------------------------------------


def make_callback(context: Context, index: int, given: Any) -> Any:
    """A Keras callback out of `NAME` or `{class_name: NAME, config: {…}}`; NAME with a dot is an import path.

    Raises:
        truba_runner.errors.Failed: there is no such callback, or it does not take these arguments.
    """
    import keras

    where = f"train.callbacks[{index}]"
    name, settings = entry_of(where, given, "EarlyStopping")
    found = imported(context, where, name) if "." in name else _own(context, where, name)
    callback = make(found, where, name, settings)
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


def _own(context: Context, where: str, name: str) -> Any:
    """A name without a dot: the job's, or Keras'."""
    import keras

    for module in (context.job, keras.callbacks):
        if inspect.isclass(getattr(module, name, None)):
            return getattr(module, name)
    valid = {item for item in dir(keras.callbacks) if inspect.isclass(getattr(keras.callbacks, item))}
    raise Failed(
        _(
            "{where}: neither Keras nor {file} has a callback {name!r}. {nearest} Those of other modules are named "
            "with their path: mypackage.mymodule.MyCallback.",
            where=where,
            file=context.job.__file__,
            name=name,
            nearest=nearest(name, valid),
        )
    )


# -- the models that are kept ----------------------------------------------------------------------------------


def _kept_models(context: Context, preprocessing: Preprocessing | None) -> Any:
    """A model for use after each epoch, and the best of them: ModelCheckpoint's work, with files that are whole."""
    import keras

    wanted, folder = context.experiment.checkpoint, context.run.models
    ahead = preprocessing if preprocessing and not preprocessing.inside else None

    class KeptModels(keras.callbacks.Callback):  # type: ignore[misc]
        """Saves to `checkpoints/models/`; a disk that refuses it stops no training."""

        best: float | None = None

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            """Saves what the config wants of this epoch's model."""
            names = [f"model_{epoch + 1}.keras"] if wanted.model_each_epoch else []
            if wanted.best_model and self._is_better(logs or {}):
                names.append("best.keras")
            for name in names:
                self._save(folder / name)

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

        def _save(self, path: Path) -> None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with whole(path) as beside:
                    (ahead.joined(self.model) if ahead else self.model).save(beside)
            except OSError as error:
                _tell(_("{name} could not be saved ({error}); training goes on", name=path.name, error=error))

    return KeptModels()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
