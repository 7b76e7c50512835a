"""`train.lr_find`: a learning rate that a finder looks for before the training, in the run itself or in one before it.

`valley`, `steep/10` or `slide*2` is the suggestion that becomes the learning rate, and what it is divided or multiplied
by; `{rate: valley/10, start_lr: 1e-7, end_lr: 10, num_it: 100}` says besides through which rates the finder goes, and
in how many steps. With `sweep=lr_find` the finder is a run of its own, made of the same experiment. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config.durations import parse_minutes, slurm_time
from truba_runner.config.partitions import facts_of
from truba_runner.config.recipe import FINDER, RAMP, Find, Rate, read_rate, whole_epochs
from truba_runner.config.schema import (
    Checkpoint,
    Experiment,
    Finish,
    Notify,
    Partition,
    Resources,
    Sweep,
    TensorBoard,
)
from truba_runner.language import _, marked

# Of a sweep whose runs have their finders in jobs of their own, and of such a finder's run.
KIND = "lr_find"
# A finder's job: for starting, reading data, a compilation; no shorter than this; differing by less is no difference.
_AROUND_MINUTES, _LEAST_MINUTES, _ROUNDED_TO_MINUTES = 10, 30, 15
_EXAMPLE = marked("Write valley, steep/10 or {rate: valley, num_it: 200}.")


@dataclass(frozen=True)
class Asked:
    """What a valid `train.lr_find` says: how the finder goes, and what becomes of its suggestions."""

    finder: Find
    rate: Rate


def asked(experiment: Experiment) -> Asked | None:
    """What the experiment asks for; None: no finder."""
    if experiment.train.lr_find is None:
        return None
    rate, options = _parts(experiment.train.lr_find)
    return Asked(Find(FINDER, options), read_rate(f"{FINDER}.{rate}"))


def taken(experiment: Experiment) -> str:
    """What becomes the learning rate, as it was written: valley, steep/10."""
    return _parts(experiment.train.lr_find)[0]


def with_default(experiment: Experiment) -> Experiment:
    """The same where it asks for a finder; where only `sweep=lr_find` does, with the suggestion that fastai takes."""
    if experiment.sweep.kind != KIND or experiment.train.lr_find is not None:
        return experiment
    return replace(experiment, train=replace(experiment.train, lr_find="valley"))


def finder_of(experiment: Experiment) -> Experiment:
    """The finder as a run of its own: what decides its curve, and none of what is made of it."""
    _, options = _parts(experiment.train.lr_find)
    # Any number of epochs and any recipe begin with the same network, and so with the same curve.
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
    """Those of the training, for as long as `sweep.finder_time` says, or else as its steps may need.

    A hundred of them are given an epoch's part of the training's time. It starts over when it is interrupted, so there
    is no chain of jobs in which it could be a segment.
    """
    resources = experiment.resources
    if experiment.sweep.finder_time:
        minutes = parse_minutes(experiment.sweep.finder_time)
    else:
        _first, _end, steps = Find(FINDER, _parts(experiment.train.lr_find)[1]).ramp
        whole = parse_minutes(resources.time)
        share = whole / whole_epochs(experiment.train) * max(1.0, steps / RAMP["num_it"])
        rounded = math.ceil((_AROUND_MINUTES + share) / _ROUNDED_TO_MINUTES) * _ROUNDED_TO_MINUTES
        minutes = min(max(rounded, _LEAST_MINUTES), whole, parse_minutes(_facts(experiment).max_time))
    signal_seconds = resources.signal_seconds and min(resources.signal_seconds, 30 * minutes)
    return replace(resources, time=slurm_time(minutes), segment="", signal_seconds=signal_seconds)


def _facts(experiment: Experiment) -> Partition:
    return facts_of(experiment.cluster, experiment.resources.partition, experiment.resources.constraint)


def stage_of(finder: Experiment) -> Find:
    """How a finder that is a run of its own goes."""
    return Find(FINDER, dict(finder.train.lr_find))


def training_of(experiment: Experiment) -> Experiment:
    """The training: that of a run which has no finder before it, and looks for its rate itself."""
    if experiment.sweep.kind != KIND:
        return experiment
    return replace(experiment, sweep=replace(experiment.sweep, kind=""))


def _parts(given: Any) -> tuple[str, dict[str, Any]]:
    """The rate, and the finder's own settings."""
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping) and isinstance(given.get("rate"), str) and "name" not in given:
        return given["rate"], {key: value for key, value in given.items() if key != "rate"}
    raise ValueError(_("it says which of the finder's suggestions is the learning rate"))
