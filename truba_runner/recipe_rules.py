"""What is wrong with a recipe, told at submission. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truba_runner.errors import Problem, nearest
from truba_runner.recipe import KEYS, RAMP, REQUIRED, SUGGESTIONS, named, read_rate


def problems(recipe: Sequence[Any], epochs: int, learning_rate: float | None = None) -> Iterator[Problem]:
    """What is wrong with a recipe; `epochs` and `learning_rate` are what `train` says beside it."""
    finds: list[str] = []
    lengths: list[Any] = []
    rates: list[Any] = []
    for index, item in enumerate(recipe):
        place = f"train.recipe[{index}]"
        try:
            name, options = named(item)
        except ValueError:
            yield Problem(
                f"{place}={item}",
                "a stage is a name, or a name with its settings.",
                "Write it as unfreeze or {fit_one_cycle: {epochs: 3}}.",
            )
            continue
        if name not in KEYS:
            yield Problem(f"{place}={name}", "there is no such stage.", nearest(name, KEYS))
            continue
        yield from stage_problems(f"{place}.{name}", name, options, finds)
        lengths += [options[key] for key in ("epochs", "freeze_epochs") if key in options]
        if "epochs" in KEYS[name]:
            # A stage that has none of its own takes that of `train`.
            own = options.get("base_lr" if name == "fine_tune" else "lr", learning_rate)
            rates += own if isinstance(own, list | tuple) else [own]
        if name == "lr_find":
            finds.append(str(options.get("name")))
    if recipe and not any(isinstance(length, int) for length in lengths):
        yield Problem("train.recipe", "no stage of it trains.", "Add one, for example {fit_one_cycle: {epochs: 3}}.")
    if lengths and epochs != 1 and epochs not in lengths:
        yield Problem(
            f"train.epochs={epochs}",
            "the stages of train.recipe say how long they are, and none of them takes this number.",
            f"Set train.epochs={lengths[-1]}, or write epochs: ${{train.epochs}} in a stage.",
        )
    if rates and learning_rate is not None and learning_rate not in rates:
        yield Problem(
            f"train.learning_rate={learning_rate:g}",
            "the stages of train.recipe have rates of their own, and none of them takes this one.",
            "Leave it out, or write lr: ${train.learning_rate} in a stage.",
        )


def stage_problems(place: str, name: str, options: Mapping[str, Any], finds: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with a stage of this name; `finds` are the names of the finders before it."""
    kinds = KEYS[name]
    for key in REQUIRED.get(name, ()):
        if key not in options:
            example = {"name": "find", "size": "224"}.get(key, "3")
            yield Problem(f"{place}.{key}", "it is missing.", f"Write {name}: {{{key}: {example}}}.")
    for key, value in options.items():
        if key not in kinds:
            yield Problem(f"{place}.{key}", f"{name} has no such setting.", nearest(str(key), kinds))
        elif kinds[key] in ("rate", "one rate"):
            yield from _rate_problems(f"{place}.{key}", value, finds, pair=kinds[key] == "rate")
        elif kinds[key] == "name":
            yield from _name_problems(f"{place}.{key}", value, finds)
        else:
            yield from _number_problems(f"{place}.{key}", key, value, kinds[key])
    if name == "lr_find":
        first, last = (options.get(key, RAMP[key]) for key in ("start_lr", "end_lr"))
        if all(isinstance(rate, int | float) for rate in (first, last)) and not first < last:
            yield Problem(
                f"{place}: start_lr={first:g}, end_lr={last:g}",
                "lr_find raises the rate from start_lr to end_lr, which is larger.",
                f"Left out they are {RAMP['start_lr']:g} and {RAMP['end_lr']:g}.",
            )


def _name_problems(place: str, value: Any, finds: Sequence[str]) -> Iterator[Problem]:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w*", value):
        yield Problem(f"{place}={value}", "rates refer to it: letters, digits and '_' only.", "Write name: find.")
    elif value in finds:
        yield Problem(f"{place}={value}", "an earlier lr_find has this name.", f"Write name: {value}2.")


def _number_problems(place: str, key: str, value: Any, kind: type) -> Iterator[Problem]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and not (isinstance(value, int) and number and value >= 1):
        yield Problem(f"{place}={value}", "it is a whole number, 1 or more.", f"Write {key}: 3.")
    elif kind is float and not (number and (value > 0 or (key == "wd" and value == 0))):
        yield Problem(f"{place}={value}", "it is a positive number.", "Leave it out for fastai's own.")
    elif key == "pct_start" and not value < 1:
        yield Problem(f"{place}={value}", "it is the share of the steps in which the rate rises.", "Write 0.25.")


def _rate_problems(place: str, value: Any, finds: Sequence[str], pair: bool) -> Iterator[Problem]:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if listed and (not pair or len(value) != 2):
        rule = "a list of rates has two, for the first layers and the last." if pair else "it takes a single rate."
        yield Problem(f"{place}={value}", rule, "Write [1e-6, 1e-4]." if pair else "Write 1e-3.")
        return
    for one in value if listed else [value]:
        try:
            rate = read_rate(one)
        except (TypeError, ValueError):
            yield Problem(
                f"{place}={one}",
                "a rate is a positive number, or what an earlier lr_find suggests.",
                "Write 1e-3, find.valley or find.valley/10, after {lr_find: {name: find}}.",
            )
            continue
        if rate.find and rate.find not in finds:
            yield Problem(
                f"{place}={one}",
                f"no lr_find named {rate.find} comes before it.",
                nearest(rate.find, finds) if finds else f"Put {{lr_find: {{name: {rate.find}}}}} before it.",
            )
        elif rate.find and rate.suggestion not in SUGGESTIONS:
            yield Problem(f"{place}={one}", "lr_find suggests no such rate.", nearest(rate.suggestion, SUGGESTIONS))
