"""Identity of a run: the part of its config that determines the trained network, its hash and the run id. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from truba_runner.config.schema import Experiment, Search, Sweep


def training_config(experiment: Experiment) -> dict[str, Any]:
    """Return what determines the trained network (job, data by name, training settings) or a search's trials."""
    job, train = asdict(experiment.job), asdict(experiment.train)
    del job["weights"]
    if not job["hyperparameters"]:
        del job["hyperparameters"]
    # Keep the shape that the config had when existing runs got their ids: keys added later count only when set.
    train["metrics"] = train["metrics"] or []
    for late in ("loss_weights", "lr_find", "steps_per_epoch"):
        if train[late] is None:
            del train[late]
    config: dict[str, Any] = {
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
    if experiment.data.hub:
        config["data"]["hub"] = experiment.data.hub
    return {**config, "sweep": _search_config(experiment.sweep)} if experiment.sweep.kind else config


def _search_config(sweep: Sweep) -> dict[str, Any]:
    """Return the settings that determine a search's trials."""
    others = ("workers", "directory", "lease_seconds", "lock", "best_models", "max_consecutive_failed_trials")
    return {one.name: getattr(sweep, one.name) for one in fields(Search) if one.name not in others}


def training_hash(experiment: Experiment) -> str:
    """Return the first eight hexadecimal digits of the training config's SHA-256."""
    canonical = json.dumps(_sorted(training_config(experiment)), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_id(experiment: Experiment) -> str:
    """Return `NAME-HASH`: the same for a training config on every cluster and with any resources."""
    return f"{experiment.name}-{training_hash(experiment)}"


def newest(name: str, exists: Callable[[str], bool], fresh: bool) -> str:
    """Return the newest of `name`, `name.2`, `name.3` and so on that exists; if `fresh`, the one after it."""
    count = 1
    while exists(f"{name}.{count + 1}"):
        count += 1
    if fresh and exists(name):
        count += 1
    return name if count == 1 else f"{name}.{count}"


def _sorted(value: Any) -> Any:
    """Sort the keys of all nested mappings: null, then numbers, then strings, as one mapping may hold all."""
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if not isinstance(value, dict):
        return value
    keys = sorted(value, key=lambda key: (isinstance(key, str), key is not None, key if key is not None else 0))
    return {key: _sorted(value[key]) for key in keys}
