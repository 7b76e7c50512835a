"""Parse `train.recipe`, a list of training stages, without importing a framework. Pure.

| stage | keys, required ones first |
|---|---|
| `{lr_find: …}` | `name`, `start_lr`, `end_lr`, `num_it` |
| `{fit_one_cycle: …}` | `epochs`, `lr`, `div`, `div_final`, `pct_start`, `wd` |
| `{fit_flat_cos: …}` | `epochs`, `lr`, `div_final`, `pct_start`, `wd` |
| `{fit: …}` | `epochs`, `lr`, `wd` |
| `{fine_tune: …}` | `epochs`, `freeze_epochs`, `base_lr`, `lr_mult`, `pct_start`, `div`, `div_final`, `wd` |
| `freeze`, `unfreeze` | none |
| `{resize: …}` | `size`, `batch_size` |

A rate is a number, a suggestion of an earlier `lr_find` (`find.valley`, `find.valley/10`, `find.steep*2`), or a list of
two of these: for the first and the last group of layers, with the groups between them spaced in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from truba_runner.config.schema import Train

from truba_runner.language import _

SUGGESTIONS = ("minimum", "steep", "valley", "slide")
# Name of the finder of `train.lr_find`; finders of a recipe have their own `name`.
FINDER = "find"
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*(?:([*/])\s*(\S+))?")

_FIT = {"epochs": int, "wd": float}
_CYCLE = {**_FIT, "div": float, "div_final": float, "pct_start": float}
# Keys of each stage with their type; a `rate` may be a reference or a pair, a `one rate` no pair, a `name` is text.
KEYS: dict[str, dict[str, Any]] = {
    "lr_find": {"name": "name", "start_lr": float, "end_lr": float, "num_it": int},
    "fit_one_cycle": {**_CYCLE, "lr": "rate"},
    "fit_flat_cos": {**_FIT, "div_final": float, "pct_start": float, "lr": "rate"},
    "fit": {**_FIT, "lr": "rate"},
    "fine_tune": {**_CYCLE, "freeze_epochs": int, "base_lr": "one rate", "lr_mult": float},
    "freeze": {},
    "unfreeze": {},
    "resize": {"size": int, "batch_size": int},
}
REQUIRED = {
    "lr_find": ("name",),
    "fit_one_cycle": ("epochs",),
    "fit_flat_cos": ("epochs",),
    "fit": ("epochs",),
    "fine_tune": ("epochs",),
    "resize": ("size",),
}
TRAINING = tuple(name for name, keys in KEYS.items() if "epochs" in keys)
# Defaults of fastai's Learner.lr_find; its suggestions need at least a few points.
RAMP: dict[str, float] = {"start_lr": 1e-7, "end_lr": 10, "num_it": 100}
_LEAST_STEPS = 6
# Default base_lr of fastai's Learner.fine_tune.
_FINE_TUNE_LR = 2e-3


@dataclass(frozen=True)
class Rate:
    """A learning rate: `factor` times the `suggestion` of the finder `find`, or `factor` itself without a finder."""

    factor: float
    find: str = ""
    suggestion: str = ""

    def resolve(self, answers: Mapping[str, Mapping[str, float | None]]) -> float | None:
        """Return the rate as a number; None if the finder could not make this suggestion."""
        if not self.find:
            return self.factor
        suggested = answers[self.find][self.suggestion]
        return None if suggested is None else self.factor * suggested

    def __str__(self) -> str:
        """Format the rate as in a recipe, in a normalized form."""
        if not self.find:
            return f"{self.factor:g}"
        by = "" if self.factor == 1 else f"*{self.factor:g}" if self.factor > 1 else f"/{1 / self.factor:g}"
        return f"{self.find}.{self.suggestion}{by}"


@dataclass(frozen=True)
class Rates:
    """Learning rates of a fit: `low` for the first group of layers, `high` for the last.

    Without `low` all groups have `high`; with `falling` all but the last have a tenth of it, as fastai's `slice(high)`.
    """

    high: Rate
    low: Rate | None = None
    falling: bool = False


@dataclass(frozen=True)
class Find:
    """Stage that runs the learning-rate finder and stores its suggestions under a name."""

    name: str
    options: dict[str, float] = field(default_factory=dict)

    @property
    def ramp(self) -> tuple[float, float, int]:
        """First rate, end rate (not reached), and number of steps, at least 6; defaults are fastai's."""
        first, end, steps = (self.options.get(key, otherwise) for key, otherwise in RAMP.items())
        return first, end, max(_LEAST_STEPS, int(steps))


@dataclass(frozen=True)
class Fit:
    """Stage that trains for some epochs; `method` is the method of fastai's Learner."""

    method: str
    epochs: int
    # None: the learner's own rate.
    lr: Rates | None = None
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Freeze:
    """Stage that from now on trains only the head (`frozen`), or all layers."""

    frozen: bool


@dataclass(frozen=True)
class Resize:
    """Stage that from now on changes the image size, and the batch size if `batch_size` is set."""

    size: int
    batch_size: int | None = None


Stage = Union[Find, Fit, Freeze, Resize]


def read(recipe: Sequence[Any], epochs: int, learning_rate: float | None) -> tuple[Stage, ...]:
    """Return the stages of a valid recipe; an empty one stands for one `fit_one_cycle` of `epochs` epochs.

    `fine_tune` is expanded into the four stages of which fastai's own consists.
    """
    given = recipe or [{"fit_one_cycle": {"epochs": epochs}}]
    return tuple(part for item in given for part in _stages(*named(item), learning_rate))


def shortened(recipe: Sequence[Any], epochs: int) -> list[Any]:
    """Return the recipe with every stage limited to `epochs` epochs."""

    def short(item: Any) -> Any:
        name, options = named(item)
        limited = {key: min(value, epochs) for key, value in options.items() if key in ("epochs", "freeze_epochs")}
        return {name: {**options, **limited}} if limited else item

    return [short(item) for item in recipe]


def rate_taken(text: str, suggestions: Mapping[str, float | None]) -> float | None:
    """Return the rate for an expression such as valley/10, given a finder's suggestions; None if its one is missing."""
    return read_rate(f"{FINDER}.{text}").resolve({FINDER: suggestions})


def can_grow(stage: Stage) -> bool:
    """Whether lengthening the stage keeps its earlier steps: its rates do not depend on its length."""
    return isinstance(stage, Fit) and stage.method == "fit"


def signature(stages: Sequence[Stage]) -> list[list[str]]:
    """Return what must be unchanged for a checkpoint to stay valid: a recipe that begins like this can be resumed.

    The length of the last stage is left out if the stage can grow.
    """
    if stages and isinstance(stages[-1], Fit) and can_grow(stages[-1]):
        stages = [*stages[:-1], replace(stages[-1], epochs=0)]
    return [[type(stage).__name__, repr(asdict(stage))] for stage in stages]


def epochs_of(stages: Sequence[Stage]) -> int:
    """Return the total epochs of the stages."""
    return sum(stage.epochs for stage in stages if isinstance(stage, Fit))


def whole_epochs(train: Train) -> int:
    """Return the epochs of a training, from its recipe if it has one."""
    return epochs_of(read(train.recipe, train.epochs, None))


def named(item: Any) -> tuple[str, dict[str, Any]]:
    """Split an item of a recipe into the stage's name and settings.

    Raises:
        ValueError: the item is neither a name nor a name with its settings.
    """
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
    raise ValueError(_("{text!r} is not a stage", text=item))


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
    """Yield the stages of which fastai 2.8's `Learner.fine_tune` consists."""
    if base_lr is None:
        base_lr = _FINE_TUNE_LR if learning_rate is None else learning_rate
    base = read_rate(base_lr)
    half, low = Rate(base.factor / 2, base.find, base.suggestion), base.factor / 2 / lr_mult
    yield Freeze(True)
    yield Fit("fit_one_cycle", freeze_epochs, Rates(base, falling=True), {**options, "pct_start": 0.99})
    yield Freeze(False)
    rates = Rates(half, Rate(low, base.find, base.suggestion))
    yield Fit("fit_one_cycle", epochs, rates, {**options, "pct_start": pct_start, "div": div})


def _rates(value: Any) -> Rates:
    if isinstance(value, Sequence) and not isinstance(value, str):
        low, high = value
        return Rates(read_rate(high), read_rate(low))
    return Rates(read_rate(value))


def read_rate(value: Any) -> Rate:
    """Parse a rate of a recipe.

    Raises:
        ValueError: the value is neither a positive number nor a reference.
    """
    if isinstance(value, str) and (found := _REFERENCE.fullmatch(value.strip())):
        by = _positive(found[4]) if found[4] else 1.0
        return Rate(1 / by if found[3] == "/" else by, found[1], found[2])
    return Rate(_positive(value))


def _positive(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(_("it is not a number"))
    number = float(value)
    if not number > 0 or number == float("inf"):
        raise ValueError(_("it is not positive"))
    return number
