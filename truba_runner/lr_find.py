"""`train.lr_find`: a learning rate that a finder looks for before the training, in the run itself or in one before it.

`valley`, `steep/10` or `slide*2` is the suggestion that becomes the learning rate, and what it is divided or multiplied
by; `{rate: valley/10, start_lr: 1e-7, end_lr: 10, num_it: 100}` says besides through which rates the finder goes, and
in how many steps. With `sweep=lr_find` the finder is a run of its own, made of the same experiment. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config import Checkpoint, Experiment, Finish, Notify, Partition, Resources, Sweep, TensorBoard
from truba_runner.durations import FORMS, parse_minutes, slurm_time
from truba_runner.errors import Problem, nearest
from truba_runner.language import _, marked
from truba_runner.recipe import FINDER, RAMP, SUGGESTIONS, Find, Rate, read_rate, whole_epochs
from truba_runner.recipe_rules import stage_problems
from truba_runner.request import facts_of

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


def time_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with `sweep.finder_time`."""
    given = experiment.sweep.finder_time
    if not given:
        return
    received, facts = f"sweep.finder_time={given}", _facts(experiment)
    try:
        minutes = parse_minutes(given)
    except ValueError as error:
        yield Problem(received, f"{error}.", _("Write it as {forms}.", forms=_(FORMS)))
        return
    if minutes < 1:
        yield Problem(received, _("a finder needs some time."), _("Leave it out: it follows from resources.time."))
    longest = parse_minutes(facts.max_time)
    if experiment.cluster.scheduler == "slurm" and minutes > longest:
        rule = _("{partition} allows {time}.", partition=experiment.resources.partition, time=slurm_time(longest))
        yield Problem(received, rule, _("Leave it out: it follows from resources.time."))


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


def problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with `train.lr_find`, or does not go with it."""
    train = experiment.train
    if train.lr_find is None:
        return
    try:
        rate, options = _parts(train.lr_find)
    except ValueError as error:
        yield Problem(f"train.lr_find={train.lr_find}", f"{error}.", _(_EXAMPLE))
        return
    yield from _rate_problems(rate)
    yield from stage_problems("train.lr_find", "lr_find", {"name": FINDER, **options}, [])
    if train.learning_rate is not None:
        yield Problem(
            f"train.learning_rate={train.learning_rate:g}",
            _("{setting} finds the rate.", setting=f"train.lr_find={train.lr_find}"),
            _("Leave one of them out: train.learning_rate=null or train.lr_find=null (and sweep=lr_find)."),
        )
    if "train.learning_rate" in experiment.sweep.space:
        rule = _("{setting} finds the rate of each trial.", setting=f"train.lr_find={train.lr_find}")
        yield Problem("sweep.space.train.learning_rate", rule, _("Leave one of them out."))
    if train.scale_learning_rate:
        yield Problem(
            "train.scale_learning_rate=true",
            _("the finder goes through batches of all GPUs, and finds the rate for those."),
            _("Leave it out."),
        )
    if any(isinstance(stage, Mapping) and "lr_find" in stage for stage in train.recipe):
        yield Problem(
            f"train.lr_find={train.lr_find}",
            _("train.recipe looks for its rates itself, with stages of its own (lr_find)."),
            _("Leave train.lr_find and sweep=lr_find out, or take those stages and the rates that refer to them out."),
        )


def _parts(given: Any) -> tuple[str, dict[str, Any]]:
    """The rate, and the finder's own settings."""
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping) and isinstance(given.get("rate"), str) and "name" not in given:
        return given["rate"], {key: value for key, value in given.items() if key != "rate"}
    raise ValueError(_("it says which of the finder's suggestions is the learning rate"))


def _rate_problems(text: str) -> Iterator[Problem]:
    received = f"train.lr_find={text}"
    try:
        rate = read_rate(f"{FINDER}.{text}")
    except ValueError:
        rule = _("it is a suggestion of the finder, which may be divided or multiplied.")
        yield Problem(received, rule, _(_EXAMPLE))
        return
    if rate.suggestion not in SUGGESTIONS:
        yield Problem(received, _("lr_find suggests no such rate."), nearest(rate.suggestion, SUGGESTIONS))
