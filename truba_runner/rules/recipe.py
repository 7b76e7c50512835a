"""Validate `train.recipe`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truba_runner.config.recipe import KEYS, RAMP, REQUIRED, SUGGESTIONS, named, read_rate
from truba_runner.errors import Problem, nearest
from truba_runner.language import _


def problems(recipe: Sequence[Any], epochs: int, learning_rate: float | None = None) -> Iterator[Problem]:
    """Report problems of a recipe; `epochs` and `learning_rate` are those of `train`."""
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
                _("a stage is a name, or a name with its settings."),
                _("Write it as {examples}.", examples=_(" or ").join(("unfreeze", "{fit_one_cycle: {epochs: 3}}"))),
            )
            continue
        if name not in KEYS:
            yield Problem(f"{place}={name}", _("there is no such stage."), nearest(name, KEYS))
            continue
        yield from stage_problems(f"{place}.{name}", name, options, finds)
        lengths += [options[key] for key in ("epochs", "freeze_epochs") if key in options]
        if "epochs" in KEYS[name]:
            # A stage without its own rate takes `train.learning_rate`.
            own = options.get("base_lr" if name == "fine_tune" else "lr", learning_rate)
            rates += own if isinstance(own, (list, tuple)) else [own]
        if name == "lr_find":
            finds.append(str(options.get("name")))
    if recipe and not any(isinstance(length, int) for length in lengths):
        remedy = _("Add one, for example {stage}.", stage="{fit_one_cycle: {epochs: 3}}")
        yield Problem("train.recipe", _("none of its stages trains."), remedy)
    if lengths and epochs != 1 and epochs not in lengths:
        yield Problem(
            f"train.epochs={epochs}",
            _("the stages of train.recipe have their own epochs, and none of them uses this number."),
            _(
                "Set train.epochs={epochs}, or write {setting} in a stage.",
                epochs=lengths[-1],
                setting="epochs: ${train.epochs}",
            ),
        )
    if rates and learning_rate is not None and learning_rate not in rates:
        yield Problem(
            f"train.learning_rate={learning_rate:g}",
            _("the stages of train.recipe have their own rates, and none of them uses this one."),
            _("Leave it out, or write {setting} in a stage.", setting="lr: ${train.learning_rate}"),
        )


def stage_problems(place: str, name: str, options: Mapping[str, Any], finds: Sequence[str]) -> Iterator[Problem]:
    """Report problems of one stage; `finds` are the names of the finders before it."""
    kinds = KEYS[name]
    for key in REQUIRED.get(name, ()):
        if key not in options:
            example = {"name": "find", "size": "224"}.get(key, "3")
            yield Problem(f"{place}.{key}", _("it is missing."), _write(f"{name}: {{{key}: {example}}}"))
    for key, value in options.items():
        if key not in kinds:
            rule = _("{stage} has no such setting.", stage=name)
            yield Problem(f"{place}.{key}", rule, nearest(str(key), kinds))
        elif kinds[key] in ("rate", "one rate"):
            yield from _rate_problems(f"{place}.{key}", value, finds, pair=kinds[key] == "rate")
        elif kinds[key] == "name":
            yield from _name_problems(f"{place}.{key}", value, finds)
        else:
            yield from _number_problems(f"{place}.{key}", key, value, kinds[key])
    if name == "lr_find":
        first, last = (options.get(key, RAMP[key]) for key in ("start_lr", "end_lr"))
        if all(isinstance(rate, (int, float)) for rate in (first, last)) and not first < last:
            yield Problem(
                f"{place}: start_lr={first:g}, end_lr={last:g}",
                _("lr_find raises the rate from start_lr to end_lr, so end_lr must be larger."),
                _(
                    "Leave them out for the defaults, {first:g} and {last:g}.",
                    first=RAMP["start_lr"],
                    last=RAMP["end_lr"],
                ),
            )


def _write(text: str) -> str:
    return _("Write {text}.", text=text)


def _name_problems(place: str, value: Any, finds: Sequence[str]) -> Iterator[Problem]:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w*", value):
        rule = _("rates refer to it: letters, digits and '_' only.")
        yield Problem(f"{place}={value}", rule, _write("name: find"))
    elif value in finds:
        yield Problem(f"{place}={value}", _("an earlier lr_find has this name."), _write(f"name: {value}2"))


def _number_problems(place: str, key: str, value: Any, kind: type) -> Iterator[Problem]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and not (isinstance(value, int) and number and value >= 1):
        yield Problem(f"{place}={value}", _("it must be a whole number, 1 or more."), _write(f"{key}: 3"))
    elif kind is float and not (number and (value > 0 or (key == "wd" and value == 0))):
        yield Problem(f"{place}={value}", _("it must be a positive number."), _("Leave it out for fastai's default."))
    elif key == "pct_start" and not value < 1:
        rule = _("it must be below 1: it is the share of the steps in which the rate rises.")
        yield Problem(f"{place}={value}", rule, _write("0.25"))


def _rate_problems(place: str, value: Any, finds: Sequence[str], pair: bool) -> Iterator[Problem]:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if listed and (not pair or len(value) != 2):
        pairs, single = (
            _("a list must have two rates, for the first layers and the last."),
            _("it takes a single rate."),
        )
        yield Problem(f"{place}={value}", pairs if pair else single, _write("[1e-6, 1e-4]" if pair else "1e-3"))
        return
    for one in value if listed else [value]:
        try:
            rate = read_rate(one)
        except (TypeError, ValueError):
            yield Problem(
                f"{place}={one}",
                _("a rate must be a positive number, or a suggestion of an earlier lr_find."),
                _("Write 1e-3 or, after {stage}, find.valley or find.valley/10.", stage="{lr_find: {name: find}}"),
            )
            continue
        if rate.find and rate.find not in finds:
            yield Problem(
                f"{place}={one}",
                _("no lr_find named {name} comes before it.", name=rate.find),
                nearest(rate.find, finds)
                if finds
                else _("Put {stage} before it.", stage=f"{{lr_find: {{name: {rate.find}}}}}"),
            )
        elif rate.find and rate.suggestion not in SUGGESTIONS:
            yield Problem(f"{place}={one}", _("lr_find suggests no such rate."), nearest(rate.suggestion, SUGGESTIONS))
