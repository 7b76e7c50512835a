"""Where two states of a training differ, leaf by leaf: each difference by the path that leads to it, with both values.

A state is made of plain values, NumPy arrays and torch's tensors, in lists, tuples and dicts of any depth. They are
compared bit by bit. Left out is what two equal trainings differ in: clocks, their folders, and the sizes of files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# By the first part of a path and its last.
_CLOCKS = {("reporter", "seconds"), ("reporter", "epoch_seconds")}
_FILE_SIZES = "event_files"
# As fastai's recorder writes how long an epoch took.
_DURATION = re.compile(r"\d+:\d\d(:\d\d)?")
# What a state holds by path already: how it comes to that says nothing more.
_BY_PATH = {"pieces", "values", "streams", "links", "states"}
# Causes before consequences: the weights differ whatever it is, and so do the metrics.
_CAUSES = (
    "values",
    "links",
    "walked",
    "before_order",
    "callbacks",
    "data",
    "streams",
    "seeds",
    "generators",
    "random",
    "numpy",
    "learner",
    "scaler",
)
_CONSEQUENCES = ("metrics", "reporter", "logs", "best", "result", "smooth_loss", "stop", "stopped")
_METRICS_KEPT = re.compile(r"\bhistory\b|^History\b|\(recorder\)")
# A dict of one key with this first letter stands for a kind of container.
_KIND = "~"
_LONGEST = 60
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A leaf that differs: its path, and what it is in words on both sides; of an array where the first number does."""

    path: str
    one: str
    other: str
    index: str = ""


Path = tuple[Any, ...]


def between(one: Any, other: Any, folders: tuple[str, str] = ("", "")) -> list[Difference]:
    """Every leaf in which two states differ, the likely causes first.

    `folders`: those that the two trainings wrote to, which texts in their states may name.
    """
    sides = [dict(_leaves(_with_names(state))) for state in (one, other)]
    found = []
    for path in sorted(dict.fromkeys([*sides[0], *sides[1]]), key=_rank):
        values = [side.get(path, _ABSENT) for side in sides]
        bits = [_bits(value, folder) for value, folder in zip(values, folders, strict=True)]
        if bits[0] != bits[1]:
            found.append(Difference(_written(path), *_in_words(*values)))
    return found


# -- leaves and their paths ------------------------------------------------------------------------------------


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        yield (*path, len), len(value)
        named = all(isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str) for item in value)
        for index, item in enumerate(value):
            # As fastai's callbacks: pairs of a name and what it stands for.
            yield from _leaves(item[1], (*path, f"[{index}] ({item[0]})")) if named else _leaves(item, (*path, index))
    elif path[:1] != (_FILE_SIZES,) and (path[:1] + path[-1:]) not in _CLOCKS:
        yield path, value


def _with_names(state: Any) -> Any:
    """With the variables by their names, where a state has them in a list and the names in its signature."""
    variables = state.get("variables") if isinstance(state, Mapping) else None
    if not isinstance(variables, list):
        return state
    known = [str(entry[0]) for entry in state["signature"]["variables"]]
    return {**state, "variables": list(zip(known, variables, strict=True))}


def _rank(path: Path) -> int:
    if not path or path[0] in _CONSEQUENCES or any(_METRICS_KEPT.search(str(part)) for part in path):
        return 2
    return 0 if path[0] in _CAUSES else 1


def _written(path: Path) -> str:
    text = ""
    by_path = [place for place, part in enumerate(path[:2], start=1) if part in _BY_PATH and place < len(path)]
    for part in path[max(by_path, default=0) :]:
        if isinstance(part, str) and part.startswith(_KIND):
            continue
        if part is len:
            text = f"len({text})"
        elif isinstance(part, str) and not part.startswith("["):
            text += f".{part}" if text else part
        else:
            text += part if isinstance(part, str) else f"[{part!r}]"
    return text


# -- values ----------------------------------------------------------------------------------------------------


def _bits(value: Any, folder: str) -> Any:
    """What two leaves are compared by."""
    import numpy as np

    if value is _ABSENT or value is None or isinstance(value, bool | int):
        return type(value), value
    if isinstance(value, str):
        return str, "" if _DURATION.fullmatch(value) else value.replace(folder, "") if folder else value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return float, struct.pack("<d", value)
    array = _array(value)
    return str(getattr(value, "dtype", type(value))), array.shape, array.tobytes()


def _array(value: Any) -> Any:
    """As an array of NumPy's; of a dtype that NumPy does not have, as its bytes."""
    import numpy as np

    if not hasattr(value, "detach"):
        return np.asarray(value)
    import torch

    plain = value.detach().cpu().contiguous()
    try:
        return plain.numpy()
    except TypeError:
        return plain.reshape(-1).view(torch.uint8).numpy()


def _in_words(one: Any, other: Any) -> tuple[str, ...]:
    """Both sides as text; of two arrays of a shape the first number that differs, and its place."""
    import numpy as np

    if not all(hasattr(value, "detach") or isinstance(value, np.ndarray) for value in (one, other)):
        return _text(one), _text(other)
    first, second = _array(one), _array(other)
    if first.ndim == 0 or first.shape != second.shape or first.dtype != second.dtype:
        return _text(first), _text(second)
    rows = [np.ascontiguousarray(side).reshape(-1).view(np.uint8).reshape(first.size, -1) for side in (first, second)]
    index = int(np.flatnonzero((rows[0] != rows[1]).any(axis=1))[0])
    where = ", ".join(str(place) for place in np.unravel_index(index, first.shape))
    return str(first.flat[index]), str(second.flat[index]), f"[{where}]"


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "–"
    text = repr(value) if isinstance(value, str) else str(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
