"""Read trials from a search's state, without Keras Tuner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.config.tuner_keys import OWN

# Statuses of a finished trial.
REPORTED = ("COMPLETED", "FAILED")


def values_of(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's hyperparameter values."""
    return dict(trial["hyperparameters"]["values"])


def own_values(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's values without Hyperband's bookkeeping (`tuner/...`)."""
    return {name: value for name, value in values_of(trial).items() if not name.startswith(OWN)}


def ranked(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the trials that have a score, the best first, as Keras Tuner's `get_best_trials` orders them."""
    completed = [trial for trial in state["trials"].values() if trial["status"] == "COMPLETED"]
    return sorted(completed, key=lambda trial: trial["score"], reverse=state["objective"]["direction"] == "max")
