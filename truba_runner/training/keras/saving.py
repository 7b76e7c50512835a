"""How a model is kept: as `.keras`, and where Keras cannot write that, by its weights. Known before the training.

| what Keras can write | file |
|---|---|
| all | `NAME.keras` |
| all but the optimizer, the loss or the metrics | `NAME.keras`, for predicting |
| the weights alone | `NAME.weights.h5`; of a network that is never built also `NAME.ATTRIBUTE.keras`, its parts |
"""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.training import full_disk
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.preprocessing import Preprocessing
from truba_runner.training.keras.devices.own_methods import has_call
from truba_runner.training.notes import note, noted

# A model of the job's own class is made a second time to see whether it can be; not one that fills a GPU.
_MOST_WEIGHTS = 25_000_000


class Saving:
    """Saves a training's model, again and again, in the form that is possible."""

    def __init__(self, context: Context, model: Any, preprocessing: Preprocessing | None) -> None:
        """Tries what the forms need, but for the weights, and tells what is not possible."""
        self._context, self._model = context, model
        self._ahead = preprocessing if preprocessing and not preprocessing.inside else None
        wanted = context.experiment.checkpoint
        self.whole_model = self._compiled = True
        # Beside a file that Keras can write, and will not be able to read.
        self._and_weights = False
        if context.rank == 0 and (wanted.save_model or wanted.model_each_epoch or wanted.best_model):
            self._look()

    def save(self, folder: Path, name: str) -> str:
        """Saves it as `NAME.keras`, or else its weights; returns the file's name.

        Raises:
            OSError: the disk is full.
        """
        if self.whole_model and self._written(folder / f"{name}.keras"):
            if self._and_weights:
                self._save_weights(folder, name)
            return f"{name}.keras"
        return self._save_weights(folder, name)

    # -- what is possible --------------------------------------------------------------------------------------

    def _look(self) -> None:
        import keras

        parts = [self._model, *([self._ahead.layer] if self._ahead else [])]
        with _without(self._model):
            if reason := _fails(lambda: [json.dumps(keras.saving.serialize_keras_object(part)) for part in parts]):
                self.whole_model = False
                note(self._context, self._cannot(reason))
                return
        if self._ahead is None and (reason := _fails(lambda: json.dumps(self._model.get_compile_config()))):
            self._compiled = False
            note(
                self._context,
                _(
                    "model.keras is saved for predicting, without optimizer, loss and metrics, as Keras cannot write "
                    "one of them: {reason} Give it a get_config() that returns what its __init__ takes.",
                    reason=_sentence(reason),
                ),
            )
        with _same_chances():
            unreadable = next(filter(None, map(self._unreadable, _in_file(self._model))), None)
        if unreadable:
            self._and_weights = True
            note(
                self._context,
                _(
                    "model.keras is saved, but Keras will not be able to load it: {reason} model.weights.h5 is saved "
                    "beside it.",
                    reason=_sentence(unreadable),
                ),
            )

    def _cannot(self, reason: str) -> str:
        # Keras refuses to load into what it takes for unbuilt, and such a model stays it.
        first = "" if has_call(self._model) else "built = True; "
        return _(
            "model.keras cannot be saved, and model.weights.h5 is saved in its place: {reason} Give the class a "
            "get_config() that returns what its __init__ takes, and the whole model is saved. The weights are loaded "
            "with: model = build_model(); {first}model.load_weights(FILE).",
            reason=_sentence(reason),
            first=f"model.{first}" if first else "",
        )

    def _unreadable(self, layer: Any) -> str | None:
        """Why an own layer, or one with an own one inside, cannot be made from what it says of itself."""
        import keras

        if all(type(part).__module__.startswith("keras.") for part in layer._flatten_layers()):
            return None
        if isinstance(layer, keras.Model) and sum(math.prod(weight.shape) for weight in layer.weights) > _MOST_WEIGHTS:
            return None
        own = {name: value for name, value in vars(self._context.job).items() if callable(value)}
        with keras.saving.custom_object_scope(own):
            reason = _fails(lambda: type(layer).from_config(layer.get_config()))
        return reason and f"{type(layer).__name__}.from_config(get_config()): {reason}"

    # -- saving ------------------------------------------------------------------------------------------------

    def _written(self, path: Path) -> bool:
        """Whether it is saved as a whole; where that fails after all, it will not be tried again."""
        before = len(self._context.notes)
        with noted(self._context, _("model.keras cannot be saved, and model.weights.h5 is saved in its place")):
            model = self._ahead.joined(self._model) if self._ahead else self._model
            with full_disk.whole(path) as beside:
                if self._compiled:
                    model.save(beside)
                else:
                    with _without(model):
                        model.save(beside)
        self.whole_model = len(self._context.notes) == before
        return self.whole_model

    def _save_weights(self, folder: Path, name: str) -> str:
        import keras

        model = self._model
        with full_disk.whole(folder / f"{name}.weights.h5") as beside, _as_built(model):
            model.save_weights(beside)
        if not model.built:
            for attribute, part in vars(model).items():
                if isinstance(part, keras.Model) and part.built and not attribute.startswith("_"):
                    with noted(self._context, _("{name} cannot be saved", name=f"{name}.{attribute}.keras")):
                        with full_disk.whole(folder / f"{name}.{attribute}.keras") as beside:
                            part.save(beside)
        return f"{name}.weights.h5"


def _in_file(model: Any) -> Iterator[Any]:
    """The layers that are written by themselves; an own layer's own parts are its business."""
    import keras

    if isinstance(model, keras.Sequential) or hasattr(model, "output_names"):
        for layer in model.layers:
            yield from _in_file(layer)
    else:
        yield model


@contextmanager
def _without(model: Any) -> Iterator[None]:
    """In here Keras does not look at what the model was compiled with."""
    before = model.compiled
    model.compiled = False
    try:
        yield
    finally:
        model.compiled = before


@contextmanager
def _as_built(model: Any) -> Iterator[None]:
    """In here Keras takes it for built: its parts may be, though it was never called itself."""
    built = model.built
    model.built = True
    try:
        yield
    finally:
        model.built = built


@contextmanager
def _same_chances() -> Iterator[None]:
    """Layers that are made in here draw seeds of their own, and the training is not to draw others for it."""
    import numpy as np

    host, numpy_host = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(host)
        np.random.set_state(numpy_host)


def _fails(attempt: Callable[[], Any]) -> str | None:
    try:
        attempt()
    # It is the job's code that says it, in whatever way it fails.
    except Exception as error:
        return f"{type(error).__name__}: {error}" if not isinstance(error, NotImplementedError) else str(error)
    return None


def _sentence(reason: str) -> str:
    """Without the example that Keras gives, in one line that ends."""
    text = " ".join(inspect.cleandoc(reason).split("Example:")[0].split())[:400]
    return text if text.endswith(".") else f"{text}."
