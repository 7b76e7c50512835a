"""Parse `train.lr_find`, and derive the experiment of a learning-rate finder that is a run of its own. Pure.

`valley`, `steep/10` or `slide*2` names the suggestion that becomes the learning rate, with an optional divisor or
factor. `{rate: valley/10, start_lr: 1e-7, end_lr: 10, num_it: 100}` also sets the finder's range of rates and its
steps. The finder runs before the training in the same run; with `sweep=lr_find`, as a run before each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config.durations import parse_minutes, slurm_time, time_limit
from truba_runner.config.partitions import asked_for
from truba_runner.config.recipe import FINDER, RAMP, Find, Rate, read_rate, whole_epochs
from truba_runner.config.schema import (
    Checkpoint,
    Experiment,
    Finish,
    Notify,
    Resources,
    Sweep,
    TensorBoard,
)
from truba_runner.language import _

# `sweep.kind` of a sweep whose finders are separate jobs, and of each such finder's run.
KIND = "lr_find"
# The shortest time limit of a finder's job.
_LEAST_MINUTES = 30


@dataclass(frozen=True)
class Asked:
    """A parsed `train.lr_find`: the finder stage, and the rate to take from its suggestions."""

    finder: Find
    rate: Rate


def asked(experiment: Experiment) -> Asked | None:
    """Parse the experiment's valid `train.lr_find`; None if it is not set."""
    if experiment.train.lr_find is None:
        return None
    rate, options = parts(experiment.train.lr_find)
    return Asked(Find(FINDER, options), read_rate(f"{FINDER}.{rate}"))


def taken(experiment: Experiment) -> str:
    """Return the rate expression of `train.lr_find` as written, such as valley or steep/10."""
    return parts(experiment.train.lr_find)[0]


def with_default(experiment: Experiment) -> Experiment:
    """Set `train.lr_find` to fastai's default, valley, where `sweep=lr_find` is set and `train.lr_find` is not."""
    if experiment.sweep.kind != KIND or experiment.train.lr_find is not None:
        return experiment
    return replace(experiment, train=replace(experiment.train, lr_find="valley"))


def finder_of(experiment: Experiment) -> Experiment:
    """Return the experiment of a separate finder run: only what determines the curve, not how its rate is used."""
    _, options = parts(experiment.train.lr_find)
    # Epochs and recipe do not change the initial network, so they do not change the curve either.
    train = replace(experiment.train, epochs=1, recipe=[], lr_find=options)
    return replace(
        experiment,
        name=f"{experiment.name}-lr_find",
        train=train,
        resources=_resources_of_finder(experiment),
        checkpoint=Checkpoint(),
        finish=Finish(),
        tensorboard=TensorBoard(enabled=False),
        notify=Notify(),
        sweep=Sweep(kind=KIND, max_parallel=experiment.sweep.max_parallel),
    )


def _resources_of_finder(experiment: Experiment) -> Resources:
    """Return the training's resources with the finder's time limit: `sweep.finder_time`, else an estimate.

    The estimate allows one epoch's share of the training's time for each 100 steps. An interrupted finder starts over,
    so its job is never split into segments.
    """
    resources = experiment.resources
    if experiment.sweep.finder_time:
        minutes = parse_minutes(experiment.sweep.finder_time)
    else:
        _first, _end, steps = Find(FINDER, parts(experiment.train.lr_find)[1]).ramp
        whole = parse_minutes(resources.time)
        share = whole / whole_epochs(experiment.train) * max(1.0, steps / RAMP["num_it"])
        minutes = min(max(time_limit(share), _LEAST_MINUTES), whole, parse_minutes(asked_for(experiment).max_time))
    signal_seconds = resources.signal_seconds and min(resources.signal_seconds, 30 * minutes)
    return replace(resources, time=slurm_time(minutes), segment="", signal_seconds=signal_seconds)


def stage_of(finder: Experiment) -> Find:
    """Return the finder stage of a separate finder run."""
    return Find(FINDER, dict(finder.train.lr_find))


def training_of(experiment: Experiment) -> Experiment:
    """Return the experiment without `sweep=lr_find`: a run that finds its rate itself."""
    if experiment.sweep.kind != KIND:
        return experiment
    return replace(experiment, sweep=replace(experiment.sweep, kind=""))


def parts(given: Any) -> tuple[str, dict[str, Any]]:
    """Split `train.lr_find` into the rate expression and the finder's own settings."""
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping) and isinstance(given.get("rate"), str) and "name" not in given:
        return given["rate"], {key: value for key, value in given.items() if key != "rate"}
    raise ValueError(_("it must name the finder's suggestion that becomes the learning rate"))
