"""Trials as the state has them on record; read without Keras Tuner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.config.tuner_keys import OWN

# A trial's status once it is told.
TOLD = ("COMPLETED", "FAILED")


def values_of(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values."""
    return dict(trial["hyperparameters"]["values"])


def own_values(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values without those that Hyperband keeps its books with."""
    return {name: value for name, value in values_of(trial).items() if not name.startswith(OWN)}


def ranked(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials that have a score, the best first, as Keras Tuner's `get_best_trials` orders them."""
    told = [trial for trial in state["trials"].values() if trial["status"] == "COMPLETED"]
    return sorted(told, key=lambda trial: trial["score"], reverse=state["objective"]["direction"] == "max")
