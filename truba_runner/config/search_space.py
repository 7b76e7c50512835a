"""The values that a search tries: their space from YAML, and the config of the run that a trial is. Pure.

A name with a dot is a key of the config (`train.learning_rate`, `job.options.units`). Any other is asked for by the
job's own `build_model(hp)`, and stands in `job.hyperparameters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from truba_runner.config.schema import Experiment, Job, Notify, Sweep
from truba_runner.config.tuner_keys import OWN
from truba_runner.language import marked

KINDS = ("hyperband", "bayesian", "random", "grid")
# Of a hyperparameter in YAML: Keras Tuner's method, which of its arguments must be there, and which may.
_ARGUMENTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "int": ("Int", ("min_value", "max_value"), ("step", "sampling", "default")),
    "float": ("Float", ("min_value", "max_value"), ("step", "sampling", "default")),
    "choice": ("Choice", ("values",), ("ordered", "default")),
    "boolean": ("Boolean", (), ("default",)),
    "fixed": ("Fixed", ("value",), ()),
}
# Keys of the config below which a job's own names begin.
_OPEN = ("job.options.", "data.options.")
_SECTIONS = ("job", "data", "train")


def declare(space: Mapping[str, Any], hp: Any) -> None:
    """Asks Keras Tuner's `hp` for every hyperparameter of a space that has no problems."""
    for name, entry in space.items():
        ((kind, arguments),) = entry.items()
        getattr(hp, _ARGUMENTS[kind][0])(name, **_named(kind, arguments))


def _named(kind: str, arguments: Any) -> dict[str, Any]:
    if kind == "choice" and isinstance(arguments, (list, tuple)):
        return {"values": list(arguments)}
    return dict(arguments or {})


def trial_config(search: Experiment, values: Mapping[str, Any], direction: str, execution: int = 0) -> dict[str, Any]:
    """The config of the run that a trial's values stand for, leaving only what the search needs of it.

    Unchecked: the run checks it when it starts, and takes longer for it than for all the rest.
    """
    config = _with_values(search, values)
    config["train"]["seed"] += execution
    # One to go on from and the best: a search has many trials.
    kept = {"keep": 1, "save_model": False, "model_each_epoch": False, "best_model": False}
    config["checkpoint"].update(monitor=search.sweep.objective, mode=direction, **kept)
    config["finish"] = {"evaluate": False, "plots": False}
    config["notify"] = dataclasses.asdict(Notify())
    # Checked already; a start would take as long over them as over all the rest.
    config["cluster"]["partitions"] = {}
    return config


def _with_values(search: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    """The search's experiment with a trial's values, and no search."""
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
    """The job, or those of a search's trials as far as the weights that they begin from are concerned."""
    made = [experiment.job]
    for name in ("arch", "pretrained") if experiment.sweep.kind else ():
        choices = _choices(experiment.sweep.space.get(f"job.options.{name}"))
        more = [{**job.options, name: choice} for job in made for choice in choices]
        made = [dataclasses.replace(experiment.job, options=options) for options in more] or made
    return made


def _choices(entry: Any) -> list[Any]:
    """The values of an entry of the space that lists them; of one that makes no sense, none."""
    ((kind, given),) = entry.items() if isinstance(entry, Mapping) and len(entry) == 1 else [("", None)]
    if kind == "boolean":
        return [True, False]
    if kind == "fixed" and isinstance(given, Mapping):
        return [given.get("value")]
    values = given.get("values") if isinstance(given, Mapping) else given
    return list(values) if kind == "choice" and isinstance(values, (list, tuple)) else []


# -- what may not be said ----------------------------------------------------------------------------------------


_EXAMPLE = marked("Write for example {choice: [0.1, 0.01]} or {int: {min_value: 32, max_value: 512, step: 32}}.")
