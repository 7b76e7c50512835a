"""Learning curves as a picture: what `history.csv` holds, a panel a metric."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner.rundir import write_atomically

NOT_METRICS = ("epoch", "seconds")
_COLUMNS = 3
_PANEL_INCHES = (4.0, 3.0)


def learning_curves(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path | None:
    """Draws the rows of `history.csv` into `learning_curves.png`; training and validation of a metric share a panel.

    None where there is nothing to draw, or nothing to draw it with: a picture stops no run.
    """
    panels = _panels(rows)
    if not panels:
        return None
    try:
        # Under a name of its own only when whole, and without pyplot, which would look for a screen.
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / "learning_curves.png", _png(rows, panels))
    except (ImportError, OSError) as error:
        print(f"the learning curves could not be drawn ({error})", file=sys.stderr, flush=True)
        return None
    return folder / "learning_curves.png"


def _panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The columns of each panel: a metric's own, and its `val_` beside it."""
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        if column not in NOT_METRICS:
            panels.setdefault(column.removeprefix("val_"), []).append(column)
    return panels


def _png(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> bytes:
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
            label = "validation" if column.startswith("val_") else "training"
            # A single epoch has no line: the dot shows it.
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
        if len(columns) > 1:
            axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
