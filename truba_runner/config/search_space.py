"""Parse `sweep.space`, the values that a search tries, and make the config of a trial's run. Pure.

A name with a dot is a key of the config (`train.learning_rate`, `job.options.units`). Any other is a hyperparameter of
the job's own `build_model(hp)`, and its value is put into `job.hyperparameters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from truba_runner.config.schema import Experiment, Job, Notify, Sweep
from truba_runner.config.tuner_keys import OWN

KINDS = ("hyperband", "bayesian", "random", "grid")
# For each kind of hyperparameter in YAML: Keras Tuner's method, its required and its optional arguments.
ARGUMENTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "int": ("Int", ("min_value", "max_value"), ("step", "sampling", "default")),
    "float": ("Float", ("min_value", "max_value"), ("step", "sampling", "default")),
    "choice": ("Choice", ("values",), ("ordered", "default")),
    "boolean": ("Boolean", (), ("default",)),
    "fixed": ("Fixed", ("value",), ()),
}
# Prefixes below which a job may use any names.
OPEN = ("job.options.", "data.options.")
SECTIONS = ("job", "data", "train")


def declare(space: Mapping[str, Any], hp: Any) -> None:
    """Declare every hyperparameter of a valid space on Keras Tuner's `hp`."""
    for name, entry in space.items():
        ((kind, arguments),) = entry.items()
        getattr(hp, ARGUMENTS[kind][0])(name, **named_arguments(kind, arguments))


def named_arguments(kind: str, arguments: Any) -> dict[str, Any]:
    """Return the arguments of a hyperparameter by name; a list of choices may be written without one."""
    if kind == "choice" and isinstance(arguments, (list, tuple)):
        return {"values": list(arguments)}
    return dict(arguments or {})


def trial_config(search: Experiment, values: Mapping[str, Any], direction: str, execution: int = 0) -> dict[str, Any]:
    """Return the config of a trial's run, reduced to what the search needs.

    It is not validated here, as that takes longer than all other work here: the run validates it when it starts.
    """
    config = _with_values(search, values)
    config["train"]["seed"] += execution
    # A search has many trials: keep only the newest checkpoint, to resume from, and the best.
    kept = {"keep": 1, "save_model": False, "model_each_epoch": False, "best_model": False}
    config["checkpoint"].update(monitor=search.sweep.objective, mode=direction, **kept)
    config["finish"] = {"evaluate": False, "plots": False}
    config["notify"] = dataclasses.asdict(Notify())
    # Already checked; parsing the partitions at each start would take as long as the remaining config.
    config["cluster"]["partitions"] = {}
    return config


def _with_values(search: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the search's experiment as a mapping, with a trial's values and without the search."""
    config = dataclasses.asdict(dataclasses.replace(search, sweep=Sweep(), dry_run=False, fresh=False))
    for name, value in values.items():
        if name.startswith(OWN):
            continue
        *sections, key = name.split(".") if "." in name else ("job", "hyperparameters", name)
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    if "tuner/epochs" in values:
        config["train"]["epochs"] = values["tuner/epochs"]
    return config


def jobs(experiment: Experiment) -> list[Job]:
    """Return the experiment's job; for a search, one for each choice of options that select pretrained weights."""
    made = [experiment.job]
    for name in ("arch", "pretrained") if experiment.sweep.kind else ():
        choices = listed_values(experiment.sweep.space.get(f"job.options.{name}"))
        more = [{**job.options, name: choice} for job in made for choice in choices]
        made = [dataclasses.replace(experiment.job, options=options) for options in more] or made
    return made


def listed_values(entry: Any) -> list[Any]:
    """Return the values that an entry of the space lists; none for a range or an invalid entry."""
    ((kind, given),) = entry.items() if isinstance(entry, Mapping) and len(entry) == 1 else [("", None)]
    if kind == "boolean":
        return [True, False]
    if kind == "fixed" and isinstance(given, Mapping):
        return [given.get("value")]
    values = given.get("values") if isinstance(given, Mapping) else given
    return list(values) if kind == "choice" and isinstance(values, (list, tuple)) else []
