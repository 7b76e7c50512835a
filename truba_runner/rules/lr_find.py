"""Validate `train.lr_find` and `sweep.finder_time`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from truba_runner.config.durations import forms, parse_minutes, slurm_time
from truba_runner.config.lr_find import parts
from truba_runner.config.partitions import asked_for
from truba_runner.config.recipe import FINDER, SUGGESTIONS, read_rate
from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem, nearest
from truba_runner.language import _, marked
from truba_runner.rules.recipe import stage_problems

_EXAMPLE = marked("Write valley, steep/10 or {rate: valley, num_it: 200}.")


def time_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report problems of `sweep.finder_time`."""
    given = experiment.sweep.finder_time
    if not given:
        return
    received, facts = f"sweep.finder_time={given}", asked_for(experiment)
    try:
        minutes = parse_minutes(given)
    except ValueError as error:
        yield Problem(received, f"{error}.", forms())
        return
    if minutes < 1:
        yield Problem(
            received, _("it must be 1 minute or more."), _("Leave it out: it is computed from resources.time.")
        )
    longest = parse_minutes(facts.max_time)
    if experiment.cluster.scheduler == "slurm" and minutes > longest:
        rule = _("{partition} allows {time}.", partition=experiment.resources.partition, time=slurm_time(longest))
        yield Problem(received, rule, _("Leave it out: it is computed from resources.time."))


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report problems of `train.lr_find`, and settings that conflict with it."""
    train = experiment.train
    if train.lr_find is None:
        return
    try:
        rate, options = parts(train.lr_find)
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
            _("the finder runs with the batch of all GPUs, so its rate already fits that batch."),
            _("Leave it out."),
        )
    if any(isinstance(stage, Mapping) and "lr_find" in stage for stage in train.recipe):
        yield Problem(
            f"train.lr_find={train.lr_find}",
            _("train.recipe has its own lr_find stages."),
            _("Leave train.lr_find and sweep=lr_find out, or remove those stages and the rates that refer to them."),
        )


def _rate_problems(text: str) -> Iterator[Problem]:
    received = f"train.lr_find={text}"
    try:
        rate = read_rate(f"{FINDER}.{text}")
    except ValueError:
        rule = _("it must be a suggestion of the finder, divided or multiplied by a number if you like.")
        yield Problem(received, rule, _(_EXAMPLE))
        return
    if rate.suggestion not in SUGGESTIONS:
        yield Problem(received, _("lr_find suggests no such rate."), nearest(rate.suggestion, SUGGESTIONS))
