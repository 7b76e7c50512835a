"""Validate `sweep.space` and the settings of a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truba_runner.config import lr_find, recipe
from truba_runner.config.backends import TRAITS
from truba_runner.config.schema import Experiment, Sweep
from truba_runner.config.search_space import ARGUMENTS, KINDS, OPEN, SECTIONS, named_arguments
from truba_runner.errors import Problem, nearest
from truba_runner.language import _, marked
from truba_runner.rules.values import at_least, one_of

_EXAMPLE = marked("Write for example {choice: [0.1, 0.01]} or {int: {min_value: 32, max_value: 512, step: 32}}.")

# Settings of sweeps with -m that a search does not take, each with its alternative.
_OF_MANY_RUNS = {
    "max_parallel": marked("Set sweep.workers, the number of trials that run at once."),
    "canary": marked("Leave it out: three failures in a row end a search (sweep.max_consecutive_failed_trials)."),
    "pack": marked("Leave it out; sweep.workers says how many trials run at once."),
    "share_gpus": marked("Leave it out."),
    "sweeper_partition": marked("Leave it out: no process of a search waits on the login node."),
}
_LOCKS = ("auto", "fcntl", "file")
_LEAST = {
    "max_trials": 1, "max_epochs": 1, "factor": 2, "hyperband_iterations": 1, "executions_per_trial": 1,
    # Keras Tuner treats 0 as no seed.
    "seed": 1,
    "max_retries_per_trial": 0, "max_consecutive_failed_trials": 1, "workers": 1, "best_models": 0, "lease_seconds": 1,
    "num_initial_points": 1,
}  # fmt: skip


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report problems of a search's settings; none if `sweep` is no search."""
    sweep = experiment.sweep
    if sweep.kind in ("", lr_find.KIND):
        return
    yield from one_of("sweep.kind", sweep.kind, (*KINDS, lr_find.KIND))
    yield from one_of("sweep.direction", sweep.direction, ("", "min", "max"))
    yield from one_of("sweep.lock", sweep.lock, _LOCKS)
    for key, least in _LEAST.items():
        remedy = _("Set sweep.{key}={least}.", key=key, least=least)
        yield from at_least(f"sweep.{key}", getattr(sweep, key), least, remedy)
    if not sweep.objective:
        yield Problem(
            "sweep.objective=", _("a search needs a metric to compare trials by."), _("Set sweep.objective=val_loss.")
        )
    if "/" in sweep.directory or sweep.directory.startswith("."):
        yield Problem(
            f"sweep.directory={sweep.directory}",
            _("it must be the name of a folder in cluster.runs_folder."),
            _("Write the name without a path."),
        )
    ordinary = Sweep()
    for key, remedy in _OF_MANY_RUNS.items():
        if getattr(sweep, key) != getattr(ordinary, key):
            yield Problem(
                f"sweep.{key}={getattr(sweep, key)}",
                _("a search (sweep={kind}) distributes its trials itself.", kind=sweep.kind),
                _(remedy),
            )
    if experiment.resources.nodes > 1:
        yield Problem(
            f"resources.nodes={experiment.resources.nodes}",
            _("each worker of a search trains on one node, and sweep.workers is the number of workers."),
            _("Set resources.nodes=1."),
        )
    yield from _backend_problems(experiment)
    for name, entry in sweep.space.items():
        yield from _entry_problems(experiment, str(name), entry)


def _backend_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report what a search does not support with this backend."""
    sweep, backend = experiment.sweep, experiment.job.backend
    if backend in TRAITS and TRAITS[backend].task_per_gpu and experiment.resources.gpus > 1:
        yield Problem(
            f"resources.gpus={experiment.resources.gpus}",
            _(
                "a worker of a search is one process, and the {backend} backend starts one for each GPU.",
                backend=backend,
            ),
            _("Set resources.gpus=1, and a larger sweep.workers."),
        )
    if backend != "fastai":
        return
    if sweep.kind == "hyperband":
        yield from hyperband_problems(experiment.train.recipe)
    for name in sweep.space:
        if "." not in str(name):
            yield Problem(
                f"sweep.space.{name}",
                _("a name without a dot is for build_model(hp) of Keras, and the backend is fastai."),
                _("Write it as job.options.{name}: build_learner receives that.", name=name),
            )


def warnings(experiment: Experiment) -> Iterator[str]:
    """Return warnings about settings of a search that have no effect."""
    sweep = experiment.sweep
    if sweep.kind == "hyperband" and sweep.max_trials is not None:
        yield (
            _(
                "sweep.max_trials={max_trials} is ignored: Keras Tuner's Hyperband takes no such argument; "
                "max_epochs, factor and hyperband_iterations determine its number of trials.",
                max_trials=sweep.max_trials,
            )
        )
    if sweep.kind in KINDS and sweep.workers > 1 and experiment.cluster.scheduler != "slurm":
        yield _("sweep.workers={workers}: a search on this machine has one worker.", workers=sweep.workers)


def _entry_problems(experiment: Experiment, name: str, entry: Any) -> Iterator[Problem]:
    where = f"sweep.space.{name}"
    if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in ARGUMENTS:
        yield Problem(
            where, _("it must be one of {kinds}, with its arguments.", kinds=", ".join(ARGUMENTS)), _(_EXAMPLE)
        )
        return
    ((kind, given),) = entry.items()
    if given is not None and not isinstance(given, Mapping) and not (kind == "choice" and isinstance(given, list)):
        yield Problem(where, _("{kind} takes named arguments.", kind=kind), _(_EXAMPLE))
        return
    arguments, (_method, needed, optional) = named_arguments(kind, given), ARGUMENTS[kind]
    all_needed = _(" and ").join(needed)
    for key in needed:
        if key not in arguments:
            yield Problem(
                where,
                _("{kind} needs {arguments}.", kind=kind, arguments=all_needed),
                _("Add {key}.", key=key),
            )
    for key in arguments:
        if key not in (*needed, *optional):
            yield Problem(
                f"{where}.{kind}.{key}",
                _("{kind} takes no such argument.", kind=kind),
                nearest(key, (*needed, *optional)),
            )
    yield from _name_problems(experiment, name)


def _name_problems(experiment: Experiment, name: str) -> Iterator[Problem]:
    section, dot, key = name.partition(".")
    if not dot or name.startswith(OPEN):
        return
    if section not in SECTIONS:
        yield Problem(f"sweep.space.{name}", _("it is not a setting of the training."), nearest(section, SECTIONS))
        return
    valid = [field.name for field in dataclasses.fields(getattr(experiment, section))]
    if key not in valid:
        yield Problem(f"sweep.space.{name}", _("there is no such key."), nearest(key, valid))


def hyperband_problems(stages: Sequence[Any]) -> Iterator[Problem]:
    """Report a recipe whose last stage has no epochs, which Hyperband would set."""
    last = stages[-1] if stages else {"fit_one_cycle": {}}
    if not isinstance(last, Mapping) or next(iter(last), "") not in recipe.TRAINING:
        yield Problem(
            "sweep=hyperband",
            _("Hyperband sets the epochs of the last stage of train.recipe, and {last} has none.", last=last),
            _(
                "End the recipe with a stage that trains: {methods}; or choose random, bayesian or grid.",
                methods=", ".join(recipe.TRAINING),
            ),
        )
