"""Check which methods of keras.Model a job's model overrides."""

from __future__ import annotations

from typing import Any


def has_call(model: Any) -> bool:
    """Return whether the model can be called, and so be built; a GAN, which only holds its parts, often cannot."""
    import keras

    return has_own(model, "call") or isinstance(model, keras.Sequential)


def has_own(model: Any, name: str) -> bool:
    """Return whether the model's class, or a base class of it, overrides this method of `keras.Model`."""
    import keras

    return getattr(type(model), name) is not getattr(keras.Model, name)
