"""Wrap the function that Keras' `fit` calls to take one execution of steps.

Checked with Keras 3.15.1: `fit` makes `model.train_function` before `on_train_begin`, unless it is set, and looks it up
anew for each execution, which it gives the epoch's iterator. If a version keeps the function instead, a resumed run
trains again the steps that it should skip, and epochs of unknown length do not end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Execution = Callable[[Any], Any]


def wrap(model: Any, around: Callable[[Execution, Any], Any]) -> Callable[[], None]:
    """Call `around(execution, iterator)` for each execution from now on; return a function that undoes this."""
    real = model.train_function

    def unwrap() -> None:
        model.train_function = real

    model.train_function = lambda iterator: around(real, iterator)
    return unwrap


def forget(model: Any) -> None:
    """Let the next `fit` make the function anew, by the model's present settings."""
    model.train_function = None
