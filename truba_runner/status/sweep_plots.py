"""Plot a sweep: the metric over each swept value and over all of them together, and its finders' curves."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.status.sweep_table import SEED, Row, Table
from truba_runner.storage.files import write_atomically

_PANEL_INCHES = (4.0, 3.2)
_COLUMNS = 3
_CURVES_INCHES = (8.0, 5.0)
# With more lines a legend no longer helps.
_NAMED = 20
_DIVERGED_POINTS = 5


def draw(shown: Table, file: Path) -> Path:
    """Plot each run's best value of the table's metric into a PNG file.

    Raises:
        Failed: no run has a value yet, or matplotlib is not installed.
    """
    rows = [row for row in shown.rows if shown.best(row) is not None]
    if not rows:
        raise Failed(
            "no run of {sweep} has a value of {metric} yet, so there is nothing to draw",
            sweep=shown.sweep,
            metric=shown.metric,
        )
    return _saved(lambda: _figure(shown, rows), file)


def draw_curves(shown: Table, file: Path) -> Path:
    """Plot the curves of the runs' learning-rate finders into a PNG file: the loss over the rate, one line per run.

    Raises:
        Failed: matplotlib is not installed.
    """
    rows = [row for row in shown.rows if row.finding and row.finding.curve]
    return _saved(lambda: _curves(shown, rows), file)


def _saved(figure: Callable[[], Any], file: Path) -> Path:
    content = io.BytesIO()
    try:
        figure().savefig(content, format="png", dpi=120)
    except ImportError as error:
        raise Failed(
            "drawing needs matplotlib, which is not installed here ({error}); --csv works without it", error=error
        ) from error
    except Exception as error:  # matplotlib has limits of its own, for numbers and for names.
        raise Failed("{file} could not be drawn ({error})", file=file.name, error=error) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content.getvalue())
    return file


def _curves(shown: Table, rows: Sequence[Row]) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=_CURVES_INCHES, layout="constrained")
    axes = figure.add_subplot(xlabel=_("learning rate"), ylabel="loss", xscale="log")
    for place, row in enumerate(rows):
        colour = colormaps["viridis"](place / len(rows))
        name = ", ".join(f"{key.rpartition('.')[2]} {row.values.get(key)}" for key in shown.keys) or row.run
        points, rate = _points(row)
        axes.plot(*zip_equal(*points), color=colour, label=name)
        if rate is not None:
            at = min(points, key=lambda point: abs(math.log(point[0] / rate)))  # noqa: B023
            axes.plot([rate], [at[1]], "o", color=colour)
    if len(rows) <= _NAMED:
        axes.legend(fontsize=8)
    title = _(
        "{sweep}: learning-rate finders, {count} of {total} runs; dots are the chosen rates",
        sweep=shown.sweep,
        count=len(rows),
        total=len(shown.rows),
    )
    figure.suptitle(title)
    return figure


def _points(row: Row) -> tuple[list[tuple[float, float]], float | None]:
    """Return the finder's curve, as (rate, loss) without NaN losses, and the rate taken from it."""
    if row.finding is None or row.finding.curve is None:
        return [], None
    curve = row.finding.curve
    pairs = list(zip_equal(curve.learning_rates, curve.losses))
    # As in fastai's plot, leave out the last points: where the loss diverges it would dominate the axis.
    kept = pairs[:-_DIVERGED_POINTS] if len(pairs) > 2 * _DIVERGED_POINTS else pairs
    return [(rate, loss) for rate, loss in kept if loss is not None], row.finding.rate


def _figure(shown: Table, rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    keys = [key for key in shown.keys if len({str(row.values.get(key)) for row in rows}) > 1] or list(shown.keys)
    wide = max(1, min(_COLUMNS, len(keys)))
    high = max(1, -(-len(keys) // wide)) + (1 if len(keys) > 1 else 0)
    # Not with pyplot, which would look for a display.
    figure = Figure(figsize=(wide * _PANEL_INCHES[0], high * _PANEL_INCHES[1]), layout="constrained")
    grid = figure.add_gridspec(high, wide)
    for place, key in enumerate(keys):
        _over(figure.add_subplot(grid[place // wide, place % wide]), shown, rows, key)
    if len(keys) > 1:
        _parallel(figure, figure.add_subplot(grid[high - 1, :]), shown, rows, keys)
    of = _("{count} of {total} runs", count=len(rows), total=len(shown.rows))
    figure.suptitle(f"{shown.sweep}: {shown.metric}, {of}")
    return figure


def _over(axes: Any, shown: Table, rows: Sequence[Row], key: str) -> None:
    """Plot the metric over one swept value: a dot for each run, and a line through the means of each value."""
    from matplotlib.ticker import MaxNLocator

    places, labels, log = _axis([row.values.get(key) for row in rows])
    heights = [float(shown.best(row) or 0.0) for row in rows]
    axes.plot(places, heights, linestyle="none", marker="o", alpha=0.5)
    means = {place: [h for p, h in zip_equal(places, heights) if p == place] for place in set(places)}
    if key != SEED and len(means) < len(rows):
        order = sorted(means)
        axes.plot(order, [sum(means[place]) / len(means[place]) for place in order], color="0.3", linewidth=1)
    if labels:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    elif log:
        axes.set_xscale("log")
    elif all(isinstance(row.values.get(key), int) for row in rows):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(key)
    axes.set_ylabel(shown.metric)


def _parallel(figure: Any, axes: Any, shown: Table, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Plot parallel coordinates: a line for each run through its swept values, coloured by the metric."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    heights = [float(shown.best(row) or 0.0) for row in rows]
    scale = Normalize(min(heights), max(heights))
    colours = ScalarMappable(scale, colormaps["viridis"])
    columns = []
    for place, key in enumerate(keys):
        places, labels, log = _axis([row.values.get(key) for row in rows])
        scaled = [math.log10(value) for value in places] if log else places
        least, most = min(scaled), max(scaled)
        columns.append([(value - least) / (most - least) if most > least else 0.5 for value in scaled])
        ends = (labels[0], labels[-1]) if labels else (f"{min(places):g}", f"{max(places):g}")
        for end, words in enumerate(ends):
            axes.annotate(words, (place, end), fontsize=8, textcoords="offset points", xytext=(4, -3))
    for row, height in enumerate(heights):
        axes.plot(
            range(len(keys)), [column[row] for column in columns], color=colormaps["viridis"](scale(height)), alpha=0.7
        )
    axes.set_xticks(range(len(keys)), keys)
    axes.set_yticks([])
    figure.colorbar(colours, ax=axes, label=shown.metric)


def _axis(values: Sequence[Any]) -> tuple[list[float], list[str], bool]:
    """Return the values' positions on an axis, tick labels if not all are numbers, and whether to use a log scale."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        labels = sorted({str(value) for value in values})
        return [float(labels.index(str(value))) for value in values], labels, False
    wide = min(numbers) > 0 and max(numbers) / min(numbers) >= 10
    return [float(value) for value in numbers], [], wide
