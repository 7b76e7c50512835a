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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truba_runner.config.schema import Train

from truba_runner.language import _

SUGGESTIONS = ("minimum", "steep", "valley", "slide")
# What the finder of `train.lr_find` is called, as those of a recipe are by their `name`.
FINDER = "find"
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*(?:([*/])\s*(\S+))?")

_FIT = {"epochs": int, "wd": float}
_CYCLE = {**_FIT, "div": float, "div_final": float, "pct_start": float}
# Each stage's keys with their kind; `rate` may be a reference or a pair, `name` is text.
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
# Of fastai's Learner.lr_find, whose suggestions need some points.
RAMP: dict[str, float] = {"start_lr": 1e-7, "end_lr": 10, "num_it": 100}
_LEAST_STEPS = 6
# What fastai's Learner.fine_tune is called with where nothing is said.
_FINE_TUNE_LR = 2e-3


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

    @property
    def ramp(self) -> tuple[float, float, int]:
        """The first rate, the one after the last, and the number of steps between them; by default fastai's."""
        first, end, steps = (self.options.get(key, otherwise) for key, otherwise in RAMP.items())
        return first, end, max(_LEAST_STEPS, int(steps))


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
    return tuple(part for item in given for part in _stages(*named(item), learning_rate))


def shortened(recipe: Sequence[Any], epochs: int) -> list[Any]:
    """The same recipe with no stage longer than `epochs`."""

    def short(item: Any) -> Any:
        name, options = named(item)
        limited = {key: min(value, epochs) for key, value in options.items() if key in ("epochs", "freeze_epochs")}
        return {name: {**options, **limited}} if limited else item

    return [short(item) for item in recipe]


def rate_taken(text: str, suggestions: Mapping[str, float | None]) -> float | None:
    """What `text` (valley/10) makes of a finder's suggestions; None where it has no such one to make."""
    return read_rate(f"{FINDER}.{text}").resolve({FINDER: suggestions})


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


def whole_epochs(train: Train) -> int:
    """How many epochs a training has, by its recipe where it has one."""
    return epochs_of(read(train.recipe, train.epochs, None))


def named(item: Any) -> tuple[str, dict[str, Any]]:
    """A stage's name and settings, as it is written in a recipe.

    Raises:
        ValueError: it is neither a name nor a name with its settings.
    """
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
    raise ValueError(_("{text!r} is no stage", text=item))


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
    """A rate as it is written.

    Raises:
        ValueError: it is neither a positive number nor a reference.
    """
    if isinstance(value, str) and (found := _REFERENCE.fullmatch(value.strip())):
        by = _positive(found[4]) if found[4] else 1.0
        return Rate(1 / by if found[3] == "/" else by, found[1], found[2])
    return Rate(_positive(value))


def _positive(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(_("it is no number"))
    number = float(value)
    if not number > 0 or number == float("inf"):
        raise ValueError(_("it is not positive"))
    return number
