"""Recipes of stages for Hyperband's trials, whose numbers of epochs Hyperband decides. Pure.

A cycle's learning rates depend on its length, so no cycle is the beginning of a longer one: the additional epochs of a
promoted trial are a new cycle after the past ones. `fit` has constant rates: there the stage itself gets longer, and a
promoted trial equals one that was trained that long at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from truba_runner.config import recipe
from truba_runner.config.recipe import Fit, Rate


def first(stages: Sequence[Any], epochs: int) -> list[Any]:
    """Return the recipe of a new trial: its last stage has `epochs` epochs."""
    *before, last = stages or [{"fit_one_cycle": {}}]
    ((name, options),) = last.items()
    return [*before, {name: {**options, "epochs": epochs}}]


def promoted(past: Sequence[Any], more: int, learning_rate: float | None) -> list[Any]:
    """Return the recipe of a trial that trains `more` epochs after the trial whose recipe is `past`.

    `learning_rate`: for a `fine_tune` without a learning rate of its own.
    """
    *before, last = past
    stage = recipe.read([last], 0, learning_rate)[-1]
    assert isinstance(stage, Fit)  # noqa: S101  # `first` made it.
    if recipe.can_grow(stage):
        return [*before, _written(replace(stage, epochs=stage.epochs + more))]
    return [*past, _written(replace(stage, epochs=more))]


def _written(stage: Fit) -> dict[str, Any]:
    """Return a stage in a recipe's form; `Rates.falling` needs none, as only a fine_tune's first part has it."""
    rates: dict[str, Any] = {}
    if stage.lr is not None:
        low, high = stage.lr.low and _text(stage.lr.low), _text(stage.lr.high)
        rates["lr"] = high if low is None else [low, high]
    return {stage.method: {"epochs": stage.epochs, **rates, **stage.options}}


def _text(rate: Rate) -> float | str:
    return f"{rate.find}.{rate.suggestion}*{rate.factor!r}" if rate.find else rate.factor
