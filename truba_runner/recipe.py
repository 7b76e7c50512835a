"""What `train.recipe` may say: a list of stages, read and checked without a framework, told at submission. Pure.

| stage | keys, those that it cannot do without first |
|---|---|
| `{lr_find: …}` | `name`, `start_lr`, `end_lr`, `num_it` |
| `{fit_one_cycle: …}` | `epochs`, `lr`, `div`, `div_final`, `pct_start`, `wd` |
| `{fit_flat_cos: …}` | `epochs`, `lr`, `div_final`, `pct_start`, `wd` |
| `{fit: …}` | `epochs`, `lr`, `wd` |
| `{fine_tune: …}` | `epochs`, `freeze_epochs`, `base_lr`, `lr_mult`, `pct_start`, `div`, `div_final`, `wd` |
| `freeze`, `unfreeze` | none |
| `{resize: …}` | `size`, `batch_size` |

A rate is a number, what an earlier `lr_find` suggests (`find.valley`, `find.valley/10`, `find.steep*2`), or a list of
two of those: the first group of layers gets the first, the last the second, and those between lie between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from truba_runner.errors import Problem, nearest

SUGGESTIONS = ("minimum", "steep", "valley", "slide")
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*(?:([*/])\s*(\S+))?")

_FIT = {"epochs": int, "wd": float}
_CYCLE = {**_FIT, "div": float, "div_final": float, "pct_start": float}
# Each stage's keys with their kind; `rate` may be a reference or a pair, `name` is text.
_KEYS: dict[str, dict[str, Any]] = {
    "lr_find": {"name": "name", "start_lr": float, "end_lr": float, "num_it": int},
    "fit_one_cycle": {**_CYCLE, "lr": "rate"},
    "fit_flat_cos": {**_FIT, "div_final": float, "pct_start": float, "lr": "rate"},
    "fit": {**_FIT, "lr": "rate"},
    "fine_tune": {**_CYCLE, "freeze_epochs": int, "base_lr": "one rate", "lr_mult": float},
    "freeze": {},
    "unfreeze": {},
    "resize": {"size": int, "batch_size": int},
}
_REQUIRED = {
    "lr_find": ("name",),
    "fit_one_cycle": ("epochs",),
    "fit_flat_cos": ("epochs",),
    "fit": ("epochs",),
    "fine_tune": ("epochs",),
    "resize": ("size",),
}
TRAINING = tuple(name for name, keys in _KEYS.items() if "epochs" in keys)
# What fastai's Learner.fine_tune is called with where nothing is said.
_FINE_TUNE_LR = 2e-3
# And Learner.lr_find.
_FIND_FROM, _FIND_TO = 1e-7, 10.0


@dataclass(frozen=True)
class Rate:
    """A learning rate: `factor` times what `find` suggests, or `factor` itself."""

    factor: float
    find: str = ""
    suggestion: str = ""

    def resolve(self, answers: Mapping[str, Mapping[str, float | None]]) -> float | None:
        """The number; None where the finder had no such suggestion to make."""
        if not self.find:
            return self.factor
        suggested = answers[self.find][self.suggestion]
        return None if suggested is None else self.factor * suggested

    def __str__(self) -> str:
        """As it is written, more or less."""
        if not self.find:
            return f"{self.factor:g}"
        by = "" if self.factor == 1 else f"*{self.factor:g}" if self.factor > 1 else f"/{1 / self.factor:g}"
        return f"{self.find}.{self.suggestion}{by}"


@dataclass(frozen=True)
class Rates:
    """Those of a fit: `low` for the first layers and `high` for the last.

    Without `low` all have `high`; with `falling` all but the last group have a tenth of it, as fastai's `slice(high)`.
    """

    high: Rate
    low: Rate | None = None
    falling: bool = False


@dataclass(frozen=True)
class Find:
    """Runs the learning-rate finder, and keeps its suggestions under a name."""

    name: str
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """Trains for a number of epochs; `method` is one of fastai's Learner."""

    method: str
    epochs: int
    # None: the learner's own.
    lr: Rates | None = None
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Freeze:
    """From now on the head alone is trained (`frozen`), or all layers."""

    frozen: bool


@dataclass(frozen=True)
class Resize:
    """From now on images have another size, and batches too where `batch_size` says so."""

    size: int
    batch_size: int | None = None


Stage = Find | Fit | Freeze | Resize


def read(recipe: Sequence[Any], epochs: int, learning_rate: float | None) -> tuple[Stage, ...]:
    """The stages of a recipe that has no `problems`; where it is empty, one `fit_one_cycle` of `epochs` epochs.

    `fine_tune` becomes the four stages that fastai's own consists of.
    """
    given = recipe or [{"fit_one_cycle": {"epochs": epochs}}]
    return tuple(part for item in given for part in _stages(*_named(item), learning_rate))


def problems(recipe: Sequence[Any], epochs: int, learning_rate: float | None = None) -> Iterator[Problem]:
    """What is wrong with a recipe; `epochs` and `learning_rate` are what `train` says beside it."""
    finds: list[str] = []
    lengths: list[Any] = []
    rates: list[Any] = []
    for index, item in enumerate(recipe):
        place = f"train.recipe[{index}]"
        try:
            name, options = _named(item)
        except ValueError:
            yield Problem(
                f"{place}={item}",
                "a stage is a name, or a name with its settings.",
                "Write it as unfreeze or {fit_one_cycle: {epochs: 3}}.",
            )
            continue
        if name not in _KEYS:
            yield Problem(f"{place}={name}", "there is no such stage.", nearest(name, _KEYS))
            continue
        yield from _stage_problems(f"{place}.{name}", name, options, finds)
        lengths += [options[key] for key in ("epochs", "freeze_epochs") if key in options]
        if "epochs" in _KEYS[name]:
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


def shortened(recipe: Sequence[Any], epochs: int) -> list[Any]:
    """The same recipe with no stage longer than `epochs`."""

    def short(item: Any) -> Any:
        name, options = _named(item)
        limited = {key: min(value, epochs) for key, value in options.items() if key in ("epochs", "freeze_epochs")}
        return {name: {**options, **limited}} if limited else item

    return [short(item) for item in recipe]


def can_grow(stage: Stage) -> bool:
    """Whether a longer stage begins with the same steps: its rates do not follow from its length."""
    return isinstance(stage, Fit) and stage.method == "fit"


def signature(stages: Sequence[Stage]) -> list[list[str]]:
    """What has to be the same for a checkpoint to mean the same: a recipe that begins so may be gone on with.

    The length of a last stage that can grow is left out.
    """
    if stages and isinstance(stages[-1], Fit) and can_grow(stages[-1]):
        stages = [*stages[:-1], replace(stages[-1], epochs=0)]
    return [[type(stage).__name__, repr(asdict(stage))] for stage in stages]


def epochs_of(stages: Sequence[Stage]) -> int:
    """How many epochs all stages have together."""
    return sum(stage.epochs for stage in stages if isinstance(stage, Fit))


# -- reading ---------------------------------------------------------------------------------------------------


def _named(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
    raise ValueError(f"{item!r} is no stage")


def _stages(name: str, options: dict[str, Any], learning_rate: float | None) -> Iterator[Stage]:
    if name == "lr_find":
        yield Find(options.pop("name"), options)
    elif name == "resize":
        yield Resize(**options)
    elif name in ("freeze", "unfreeze"):
        yield Freeze(name == "freeze")
    elif name == "fine_tune":
        yield from _fine_tune(learning_rate=learning_rate, **options)
    else:
        epochs, lr = options.pop("epochs"), options.pop("lr", None)
        yield Fit(name, epochs, None if lr is None else _rates(lr), options)


def _fine_tune(
    epochs: int,
    learning_rate: float | None,
    base_lr: Any = None,
    freeze_epochs: int = 1,
    lr_mult: float = 100.0,
    pct_start: float = 0.3,
    div: float = 5.0,
    **options: float,
) -> Iterator[Stage]:
    """What fastai 2.8's `Learner.fine_tune` does, in parts."""
    if base_lr is None:
        base_lr = _FINE_TUNE_LR if learning_rate is None else learning_rate
    base = _rate(base_lr)
    half, low = Rate(base.factor / 2, base.find, base.suggestion), base.factor / 2 / lr_mult
    yield Freeze(True)
    yield Fit("fit_one_cycle", freeze_epochs, Rates(base, falling=True), {**options, "pct_start": 0.99})
    yield Freeze(False)
    rates = Rates(half, Rate(low, base.find, base.suggestion))
    yield Fit("fit_one_cycle", epochs, rates, {**options, "pct_start": pct_start, "div": div})


def _rates(value: Any) -> Rates:
    if isinstance(value, Sequence) and not isinstance(value, str):
        low, high = value
        return Rates(_rate(high), _rate(low))
    return Rates(_rate(value))


def _rate(value: Any) -> Rate:
    """Raises ValueError for what is neither a positive number nor a reference."""
    if isinstance(value, str) and (found := _REFERENCE.fullmatch(value.strip())):
        by = _positive(found[4]) if found[4] else 1.0
        return Rate(1 / by if found[3] == "/" else by, found[1], found[2])
    return Rate(_positive(value))


def _positive(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("it is no number")
    number = float(value)
    if not number > 0 or number == float("inf"):
        raise ValueError("it is not positive")
    return number


# -- checking --------------------------------------------------------------------------------------------------


def _stage_problems(place: str, name: str, options: Mapping[str, Any], finds: Sequence[str]) -> Iterator[Problem]:
    kinds = _KEYS[name]
    for key in _REQUIRED.get(name, ()):
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
        first, last = options.get("start_lr", _FIND_FROM), options.get("end_lr", _FIND_TO)
        if all(isinstance(rate, int | float) for rate in (first, last)) and not first < last:
            yield Problem(
                f"{place}: start_lr={first:g}, end_lr={last:g}",
                "lr_find raises the rate from start_lr to end_lr, which is larger.",
                f"Left out they are {_FIND_FROM:g} and {_FIND_TO:g}.",
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
            rate = _rate(one)
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
