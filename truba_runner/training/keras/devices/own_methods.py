"""What a job's model does in its own way, and what it leaves out."""

from __future__ import annotations

from typing import Any


def has_call(model: Any) -> bool:
    """Whether it can be called, and so be built: a GAN often is but the sum of its parts."""
    import keras

    return has_own(model, "call") or isinstance(model, keras.Sequential)


def has_own(model: Any, name: str) -> bool:
    """Whether its class, or one between, says what `keras.Model` leaves to others or does in its own way."""
    import keras

    return getattr(type(model), name) is not getattr(keras.Model, name)
