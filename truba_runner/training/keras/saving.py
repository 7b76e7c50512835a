"""Save a model as `.keras`, or only its weights if Keras cannot write that; find out which before training.

| what Keras can write | file |
|---|---|
| all | `NAME.keras` |
| all but the optimizer, the loss or the metrics | `NAME.keras`, for prediction only |
| the weights alone | `NAME.weights.h5`; for a model that is never built also its parts, `NAME.ATTRIBUTE.keras` |
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.storage.files import written_by_path
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.preprocessing import Preprocessing
from truba_runner.training.keras.internals.own_methods import has_call
from truba_runner.training.keras.internals.private_names import layers_of
from truba_runner.training.keras.loop.trial import same_randomness
from truba_runner.training.notes import note, noted

# A model of the job's own class is made a second time as a test, unless it has more weights: it may fill a GPU.
_MOST_WEIGHTS = 25_000_000


class Saving:
    """The saver of a training's model, in the fullest form that is possible, any number of times."""

    def __init__(self, context: Context, model: Any, preprocessing: Preprocessing | None) -> None:
        """Find out which form is possible without writing weights, and note what is not."""
        self._context, self._model = context, model
        self._ahead = preprocessing if preprocessing and not preprocessing.inside else None
        wanted = context.experiment.checkpoint
        self.whole_model = self._compiled = True
        # Save the weights as well: Keras can write the `.keras` file but will not be able to load it.
        self._and_weights = False
        if context.rank == 0 and (wanted.save_model or wanted.model_each_epoch or wanted.best_model):
            self._look()

    def save(self, folder: Path, name: str) -> str:
        """Save the model as `NAME.keras`, or else its weights; return the file's name.

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
        with _with_attribute(self._model, "compiled", False):
            if reason := _fails(lambda: [json.dumps(keras.saving.serialize_keras_object(part)) for part in parts]):
                self.whole_model = False
                note(self._context, self._cannot(reason))
                return
        if self._ahead is None and (reason := _fails(lambda: json.dumps(self._model.get_compile_config()))):
            self._compiled = False
            note(
                self._context,
                "model.keras is saved for predicting, without optimizer, loss and metrics, as Keras cannot write one "
                "of them: {reason} Give it a get_config() that returns what its __init__ takes.",
                reason=_sentence(reason),
            )
        # Layers made in it draw seeds, which must not affect the training.
        with same_randomness():
            unreadable = next(filter(None, map(self._unreadable, _in_file(self._model))), None)
        if unreadable:
            self._and_weights = True
            note(
                self._context,
                "model.keras is saved, but Keras will not be able to load it: {reason} model.weights.h5 is saved "
                "as well.",
                reason=_sentence(unreadable),
            )

    def _cannot(self, reason: str) -> str:
        # Keras refuses to load weights into an unbuilt model, and a model without call() stays unbuilt.
        first = "" if has_call(self._model) else "built = True; "
        return _(
            "model.keras cannot be saved, and model.weights.h5 is saved in its place: {reason} Give the class a "
            "get_config() that returns what its __init__ takes, and the whole model is saved. The weights are loaded "
            "with: model = build_model(); {first}model.load_weights(FILE).",
            reason=_sentence(reason),
            first=f"model.{first}" if first else "",
        )

    def _unreadable(self, layer: Any) -> str | None:
        """Return why a layer of the job's own, or one that contains such a layer, cannot be made from its config."""
        import keras

        if all(type(part).__module__.startswith("keras.") for part in layers_of(layer)):
            return None
        if isinstance(layer, keras.Model) and sum(math.prod(weight.shape) for weight in layer.weights) > _MOST_WEIGHTS:
            return None
        own = {name: value for name, value in vars(self._context.job).items() if callable(value)}
        with keras.saving.custom_object_scope(own):
            reason = _fails(lambda: type(layer).from_config(layer.get_config()))
        return reason and f"{type(layer).__name__}.from_config(get_config()): {reason}"

    # -- saving ------------------------------------------------------------------------------------------------

    def _written(self, path: Path) -> bool:
        """Save the whole model and return whether that worked; if not, it is not tried again."""
        before = len(self._context.notes)
        with noted(self._context, _("model.keras cannot be saved, and model.weights.h5 is saved in its place")):
            model = self._ahead.joined(self._model) if self._ahead else self._model
            with written_by_path(path) as temporary:
                with _with_attribute(model, "compiled", model.compiled and self._compiled):
                    model.save(temporary)
        self.whole_model = len(self._context.notes) == before
        return self.whole_model

    def _save_weights(self, folder: Path, name: str) -> str:
        import keras

        model = self._model
        # The model's parts may be built although it was never called itself.
        with written_by_path(folder / f"{name}.weights.h5") as temporary, _with_attribute(model, "built", True):
            model.save_weights(temporary)
        if not model.built:
            for attribute, part in vars(model).items():
                if isinstance(part, keras.Model) and part.built and not attribute.startswith("_"):
                    with noted(self._context, _("{name} cannot be saved", name=f"{name}.{attribute}.keras")):
                        with written_by_path(folder / f"{name}.{attribute}.keras") as temporary:
                            part.save(temporary)
        return f"{name}.weights.h5"


def _in_file(model: Any) -> Iterator[Any]:
    """Yield the layers that Keras rebuilds one by one; a layer of the job's own rebuilds its parts itself."""
    import keras

    if isinstance(model, keras.Sequential) or hasattr(model, "output_names"):
        for layer in model.layers:
            yield from _in_file(layer)
    else:
        yield model


@contextmanager
def _with_attribute(model: Any, name: str, value: bool) -> Iterator[None]:
    """Change the model's attribute `compiled` or `built` inside the block, so that Keras takes it for that."""
    before = getattr(model, name)
    setattr(model, name, value)
    try:
        yield
    finally:
        setattr(model, name, before)


def _fails(attempt: Callable[[], Any]) -> str | None:
    try:
        attempt()
    # The job's code may raise anything.
    except Exception as error:
        return f"{type(error).__name__}: {error}" if not isinstance(error, NotImplementedError) else str(error)
    return None


def _sentence(reason: str) -> str:
    """Return Keras' message without its example, on one line that ends with a full stop."""
    text = " ".join(inspect.cleandoc(reason).split("Example:")[0].split())[:400]
    return text if text.endswith(".") else f"{text}."
