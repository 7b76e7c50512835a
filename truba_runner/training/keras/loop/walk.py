"""Walk the objects that a Keras training depends on, and check whether evaluation runs users' code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.keras.internals.private_names import layers_of
from truba_runner.training.walk.kinds import home, is_framework
from truba_runner.training.walk.objects import Found, walk


def walk_training(
    context: Context, model: Any, callbacks: Iterable[Any] = (), known: Mapping[int, str] | None = None
) -> Found:
    """Walk what the training depends on, without its data.

    `callbacks`: the config's, in its order, from which their paths follow. `known`: as for `walk`.
    """
    callbacks = list(callbacks)
    speaking = [callback for callback in callbacks if speaks(callback)]
    return walk({"model": model, "callbacks": callbacks, "job": context.job}, speaking=speaking, known=known)


def walk_data(splits: Mapping[str, Any], model: Any, known: Mapping[int, str] | None = None) -> Found:
    """Walk the objects and functions that `load_data` returned. Arrays were copied: nothing changes them."""
    streams = {name: split for name, split in splits.items() if not isinstance(split, tuple)}
    return walk({f"data.{name}": split for name, split in streams.items()}, skip=[model], known=known)


def speaks(callback: Any) -> bool:
    """Return whether a callback has `get_state` and `set_state`."""
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


def evaluates_with_own_code(model: Any, callbacks: Iterable[Any]) -> bool:
    """Return whether evaluation may change any variable, as through a callback that swaps weights or a user's layer."""
    import keras

    hooks = ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")
    plain, harmless = keras.callbacks.Callback, {keras.callbacks.LambdaCallback, keras.callbacks.TensorBoard}
    for callback in callbacks:
        ours = home(type(callback)) == "truba_runner" or type(callback) in harmless
        if not ours and any(getattr(type(callback), hook) is not getattr(plain, hook) for hook in hooks):
            return True
    return any(not is_framework(type(layer)) for layer in layers_of(model))
