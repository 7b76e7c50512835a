"""What a learning-rate finder's curve suggests: fastai's four ways, in NumPy, for every backend.

They are `minimum`, `steep`, `valley` and `slide` of fastai 2.8, `fastai/callback/schedule.py` (Apache-2.0), and give
the same numbers for the same curve. A training whose rate grows from batch to batch is L. N. Smith's (Cyclical Learning
Rates for Training Neural Networks, WACV 2017, section 3.3).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from truba_runner.config.recipe import SUGGESTIONS, Find
from truba_runner.language import _
from truba_runner.training import plots
from truba_runner.training.backend import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

# fastai's own: so many of the last points are left out, as of a tenth of the first.
_SKIPPED_AT_THE_END = 5
# Of `slide`: how far apart its two ends are, in points, and how much their slopes may differ.
_SLIDE_POINTS, _SLIDE_SLOPE = 15, 0.005


def suggestions(rates: Sequence[float], losses: Sequence[float], steps: int) -> dict[str, float | None]:
    """What each way makes of a finder's record, which was to go on for `steps`; None where it has nothing to suggest.

    `losses` are smoothed, one for each of `rates`.
    """
    import numpy as np

    # fastai computes with float32.
    kept = slice(steps // 10, -_SKIPPED_AT_THE_END)
    x, y = (np.asarray(values[kept], np.float32) for values in (rates, losses))
    broken = np.flatnonzero(~np.isfinite(y))
    if len(broken):
        x, y = x[: broken[0]], y[: broken[0]]
    found: dict[str, float | None] = {}
    for name in SUGGESTIONS:
        try:
            rate = _WAYS[name](x, y)
        except (IndexError, ValueError):  # Too few points: the loss has grown at once.
            rate = math.nan
        found[name] = rate if math.isfinite(rate) and rate > 0 else None
    return found


def keep(context: Context, finder: Find, rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """Tells what a finder's record suggests, and leaves it in `lr_find_NAME.json` and `plots/lr_find_NAME.png`."""
    suggested = suggestions(rates, losses, finder.ramp[-1])
    if context.rank == 0:
        rates_told = {name: _("nothing") if rate is None else f"{rate:.2e}" for name, rate in suggested.items()}
        told = "  ".join(f"{name} {rate}" for name, rate in rates_told.items())
        print(f"lr_find {finder.name}: {told}", flush=True)
        curve = {"suggestions": suggested, "learning_rates": list(rates), "losses": list(losses)}
        try:
            context.run.write_rate_curve(finder.name, curve)
        except OSError as error:  # A training has its rate all the same.
            print(
                _(
                    "lr_find_{name}.json could not be written ({error}); training goes on",
                    name=finder.name,
                    error=error,
                ),
                file=sys.stderr,
            )
        plots.rate_curve(rates, losses, suggested, context.run.plots, f"lr_find_{finder.name}.png")
    return suggested


def _minimum(x: NDArray[Any], y: NDArray[Any]) -> float:
    """A tenth of the rate where the loss is lowest."""
    return float(x[y.argmin()]) / 10


def _steep(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Where the loss falls fastest over the logarithm of the rate."""
    import numpy as np

    return float(x[(np.diff(y) / np.diff(np.log(x))).argmin()])


def _valley(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Half of the way down the longest sequence of ever lower losses, which need not be neighbours."""
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
    """Where, from the end backwards, the slopes at the two ends of an interval are first alike."""
    import numpy as np

    slopes = np.gradient(y)
    right, left = -1, -1 - _SLIDE_POINTS
    rate = x[left]
    while left >= -len(y) and abs(slopes[right] - slopes[left]) > _SLIDE_SLOPE:
        rate = x[left]
        right, left = right - 1, left - 1
    return float(rate)


_WAYS = {"minimum": _minimum, "steep": _steep, "valley": _valley, "slide": _slide}
