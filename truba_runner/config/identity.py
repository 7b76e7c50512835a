"""What a run is: the part of a config that decides the trained network, and the id that is made of it. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from truba_runner.config.schema import Experiment, Search, Sweep


def training_config(experiment: Experiment) -> dict[str, Any]:
    """What decides the trained network: job, data (by name, wherever its files lie) and training settings."""
    job, train = asdict(experiment.job), asdict(experiment.train)
    del job["weights"]
    if not job["hyperparameters"]:
        del job["hyperparameters"]
    # What was there, and how, when many a run got its id.
    train["metrics"] = train["metrics"] or []
    for late in ("loss_weights", "lr_find", "steps_per_epoch"):
        if train[late] is None:
            del train[late]
    config = {
        "job": job,
        "data": {
            "name": experiment.data.name,
            "options": experiment.data.options,
            "label_pattern": experiment.data.label_pattern,
            "pack": experiment.data.pack,
            "preprocessing": experiment.data.preprocessing,
        },
        "train": train,
    }
    return {**config, "sweep": _search_config(experiment.sweep)} if experiment.sweep.kind else config


def _search_config(sweep: Sweep) -> dict[str, Any]:
    """What decides a search's trials."""
    others = ("workers", "directory", "lease_seconds", "lock", "best_models", "max_consecutive_failed_trials")
    return {one.name: getattr(sweep, one.name) for one in fields(Search) if one.name not in others}


def training_hash(experiment: Experiment) -> str:
    """Eight hexadecimal digits of what decides the trained network, or the search's trials."""
    canonical = json.dumps(_sorted(training_config(experiment)), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_id(experiment: Experiment) -> str:
    """`NAME-HASH`: the same training config has the same id on every cluster, with any resources."""
    return f"{experiment.name}-{training_hash(experiment)}"


def _sorted(value: Any) -> Any:
    """With every mapping's keys in their order: numbers before words, as one mapping may have both."""
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if not isinstance(value, dict):
        return value
    # A key may be null, too.
    keys = sorted(value, key=lambda key: (isinstance(key, str), key is not None, key if key is not None else 0))
    return {key: _sorted(value[key]) for key in keys}
