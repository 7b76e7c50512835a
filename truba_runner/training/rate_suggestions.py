"""Suggest learning rates from a finder's curve: fastai's four rules in NumPy, for every backend.

They are `minimum`, `steep`, `valley` and `slide` of fastai 2.8, `fastai/callback/schedule.py` (Apache-2.0), and give
the same numbers for the same curve. The range test itself, with a rate that grows from batch to batch, is from L. N.
Smith (Cyclical Learning Rates for Training Neural Networks, WACV 2017, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from truba_runner.config.recipe import SUGGESTIONS, Find
from truba_runner.language import _
from truba_runner.log import training_continues
from truba_runner.runs.record_shapes import RateCurve
from truba_runner.training import plots
from truba_runner.training.backend import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As in fastai, the last points are left out, as is the first tenth.
_SKIPPED_AT_THE_END = 5
# For `slide`: the length of its interval in points, and how much the slopes at its two ends may differ.
_SLIDE_POINTS, _SLIDE_SLOPE = 15, 0.005


def suggestions(rates: Sequence[float], losses: Sequence[float], steps: int) -> dict[str, float | None]:
    """Return the rate that each rule suggests, None if it has none; `steps` is the planned length of the finder.

    `losses` are smoothed, one for each of `rates`.
    """
    import numpy as np

    # float32, as in fastai.
    kept = slice(steps // 10, -_SKIPPED_AT_THE_END)
    x, y = (np.asarray(values[kept], np.float32) for values in (rates, losses))
    broken = np.flatnonzero(~np.isfinite(y))
    if len(broken):
        x, y = x[: broken[0]], y[: broken[0]]
    by_rule: dict[str, float | None] = {}
    for name in SUGGESTIONS:
        try:
            rate = _WAYS[name](x, y)
        except (IndexError, ValueError):  # Too few points: the loss grew from the start.
            rate = math.nan
        by_rule[name] = rate if math.isfinite(rate) and rate > 0 else None
    return by_rule


def keep(context: Context, finder: Find, rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """Print a finder's suggestions; write `lr_find_NAME.json` and `plots/lr_find_NAME.png`.

    Return the rate that each of the four rules suggests, None if it suggests nothing.
    """
    suggested = suggestions(rates, losses, finder.ramp[-1])
    if context.rank == 0:
        rates_in_words = {name: _("nothing") if rate is None else f"{rate:.2e}" for name, rate in suggested.items()}
        message = "  ".join(f"{name} {rate}" for name, rate in rates_in_words.items())
        print(f"lr_find {finder.name}: {message}", flush=True)
        curve = RateCurve(suggested, list(rates), list(losses))
        # The training can use the rate without the file.
        with training_continues(f"lr_find_{finder.name}.json"):
            context.run.write_rate_curve(finder.name, curve)
        plots.rate_curve(rates, losses, suggested, context.run.plots, f"lr_find_{finder.name}.png")
    return suggested


def _minimum(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return a tenth of the rate where the loss is lowest."""
    return float(x[y.argmin()]) / 10


def _steep(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the rate where the loss falls fastest over the logarithm of the rate."""
    import numpy as np

    return float(x[(np.diff(y) / np.diff(np.log(x))).argmin()])


def _valley(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the rate half-way down the longest decreasing subsequence of the losses."""
    lengths = [1] * len(y)
    start = end = 0
    for here in range(1, len(y)):
        before = [lengths[index] for index in range(here) if y[here] < y[index]]
        lengths[here] = max(before, default=0) + 1
        if lengths[here] > lengths[end]:
            end = here
            start = end - lengths[end]
    third = (end - start) / 3
    return float(x[start + int(third) + int(third / 2)])


def _slide(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the rate where an interval slid back from the end first has similar slopes at its two ends."""
    import numpy as np

    slopes = np.gradient(y)
    right, left = -1, -1 - _SLIDE_POINTS
    rate = x[left]
    while left >= -len(y) and abs(slopes[right] - slopes[left]) > _SLIDE_SLOPE:
        rate = x[left]
        right, left = right - 1, left - 1
    return float(rate)


_WAYS = {"minimum": _minimum, "steep": _steep, "valley": _valley, "slide": _slide}
