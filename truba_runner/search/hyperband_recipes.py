"""Hyperband decides how many epochs a trial has; what that means for a recipe of stages. Pure.

The rates of a cycle follow from its length: none is the beginning of a longer one. So where a trial is promoted, the
epochs that it trains more are a cycle of their own, after those of the past. `fit` has the same rates all along: there
the stage itself gets longer, and a promoted trial is what training as long at once comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from truba_runner.config import recipe
from truba_runner.config.recipe import Fit, Rate


def first(stages: Sequence[Any], epochs: int) -> list[Any]:
    """The recipe of a trial that begins: its last stage has so many epochs."""
    *before, last = stages or [{"fit_one_cycle": {}}]
    ((name, options),) = last.items()
    return [*before, {name: {**options, "epochs": epochs}}]


def promoted(past: Sequence[Any], more: int, learning_rate: float | None) -> list[Any]:
    """The recipe of a trial that trains so many epochs more than the one whose recipe is `past`.

    `learning_rate`: what a `fine_tune` goes by that has none of its own.
    """
    *before, last = past
    stage = recipe.read([last], 0, learning_rate)[-1]
    assert isinstance(stage, Fit)  # noqa: S101  # `first` made it.
    if recipe.can_grow(stage):
        return [*before, _written(replace(stage, epochs=stage.epochs + more))]
    return [*past, _written(replace(stage, epochs=more))]


def _written(stage: Fit) -> dict[str, Any]:
    """A stage as a recipe has it. Its rates do not fall: only those of a fine_tune's first part do."""
    rates: dict[str, Any] = {}
    if stage.lr is not None:
        low, high = stage.lr.low and _text(stage.lr.low), _text(stage.lr.high)
        rates["lr"] = high if low is None else [low, high]
    return {stage.method: {"epochs": stage.epochs, **rates, **stage.options}}


def _text(rate: Rate) -> float | str:
    return f"{rate.find}.{rate.suggestion}*{rate.factor!r}" if rate.find else rate.factor
