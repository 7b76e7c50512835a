"""Draw learning curves (from `history.csv`), a learning-rate finder's curve and a confusion matrix as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.older_python import zip_equal
from truba_runner.storage.files import write_atomically

NOT_METRICS = ("epoch", "stage", "seconds")
_COLUMNS = 3
_PANEL_INCHES = (4.0, 3.0)
# Most classes for which the confusion matrix has its counts as text.
_COUNTED_CLASSES = 20


def learning_curves(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path | None:
    """Draw the rows of `history.csv` into `learning_curves.png`; training and validation of a metric share a panel.

    Returns None if there is nothing to draw or drawing failed: a missing picture must not stop a run.
    """
    panels = _panels(rows)
    return save_png(folder, "learning_curves.png", lambda: _curves_figure(rows, panels)) if panels else None


def rate_curve(
    rates: Sequence[float], losses: Sequence[float], suggested: Mapping[str, float | None], folder: Path, name: str
) -> None:
    """Draw a learning-rate finder's curve, the loss over the rate, and mark its suggestions."""
    save_png(folder, name, lambda: _rate_figure(rates, losses, suggested))


def confusion_matrix(matrix: Any, folder: Path, name: str = "confusion_matrix") -> Path | None:
    """Draw `NAME.png`: counts of actual (row) against predicted (column) classes; `matrix` is int64 and square."""
    return save_png(folder, f"{name}.png", lambda: _matrix_figure(matrix))


def save_png(folder: Path, name: str, draw: Callable[[], Any]) -> Path | None:
    """Save the matplotlib figure that `draw` returns as the file `name`, atomically.

    Returns None if that fails, say without matplotlib or on a full disk: a missing picture must not stop a run.
    """
    try:
        figure = draw()
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / name, content.getvalue())
    except Exception as error:  # Any: matplotlib parses names with two dollar signs as formulas, for example.
        print_error("{file} could not be drawn ({error})", file=name, error=error)
        return None
    return folder / name


def _matrix_figure(matrix: Any) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    inches = max(4.0, min(10.0, len(matrix) / 2))
    figure = Figure(figsize=(inches, inches), layout="constrained")
    axes = figure.add_subplot(xlabel=_("predicted"), ylabel=_("actual"))
    axes.imshow(matrix, cmap="Blues")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for row, counts in enumerate(matrix if len(matrix) <= _COUNTED_CLASSES else ()):
        for column, count in enumerate(counts):
            colour = "white" if count > matrix.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return figure


def _rate_figure(rates: Sequence[float], losses: Sequence[float], suggested: Mapping[str, float | None]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel=_("learning rate"), ylabel="loss", xscale="log")
    axes.plot(rates, losses)
    for name, rate in suggested.items():
        if rate is not None:
            nearest = min(range(len(rates)), key=lambda index: abs(rates[index] - rate))  # noqa: B023
            axes.plot([rate], [losses[nearest]], "o", label=name)
    axes.legend()
    return figure


def _panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the columns of each panel: a metric and its `val_` column."""
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        if column not in NOT_METRICS:
            panels.setdefault(column.removeprefix("val_"), []).append(column)
    return panels


def _curves_figure(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> Any:
    # Not pyplot, which looks for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wide = min(_COLUMNS, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(wide * _PANEL_INCHES[0], high * _PANEL_INCHES[1]), layout="constrained")
    for place, (name, columns) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(high, wide, place, title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for column in columns:
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            label = _("validation") if column.startswith("val_") else _("training")
            # The dots show a single epoch, which has no line.
            axes.plot(*zip_equal(*points), marker=".", label=label)
        if len(columns) > 1:
            axes.legend()
    return figure
