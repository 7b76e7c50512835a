"""Compare two states of a training leaf by leaf; list each difference with its path and both values.

A state has plain values, NumPy arrays and torch tensors in lists, tuples and dicts of any depth. They are compared bit
by bit. Left out is what differs between two equal trainings: clocks, folders and file sizes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.older_python import zip_equal
from truba_runner.training.walk.state import bytes_of_tensor

# Left out, by the first and the last part of a path.
_CLOCKS = {("reporter", "seconds"), ("reporter", "epoch_seconds")}
_FILE_SIZES = "event_files"
# The duration of an epoch, in the form of fastai's recorder.
_DURATION = re.compile(r"\d+:\d\d(:\d\d)?")
# Parts of a state whose keys are paths of a walk: a difference below them is listed by that path alone.
_BY_PATH = {"pieces", "values", "streams", "links", "states"}
# Causes are listed before consequences: weights and metrics differ whatever the cause.
_CAUSES = (
    "values",
    "links",
    "walked",
    "before_order",
    "callbacks",
    "data",
    "streams",
    "seeds",
    "random",
    "numpy",
    "learner",
    "scaler",
)
_CONSEQUENCES = ("metrics", "reporter", "logs", "best", "result", "smooth_loss", "stop", "stopped")
_METRICS_KEPT = re.compile(r"\bhistory\b|^History\b|\(recorder\)")
# An encoded container is a dict whose one key is its kind, with this prefix.
_KIND = "~"
_LONGEST = 60
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A leaf that differs: its path and both values as text; for arrays, the first number that differs, with index."""

    path: str
    one: str
    other: str
    index: str = ""


Path = tuple[Any, ...]


def between(one: Any, other: Any, folders: tuple[str, str] = ("", "")) -> list[Difference]:
    """Return every leaf in which two states differ, the likely causes first.

    `folders`: the folders that the two trainings wrote to; ignored in the texts of their states.
    """
    sides = [dict(_leaves(state)) for state in (one, other)]
    found = []
    for path in sorted(dict.fromkeys([*sides[0], *sides[1]]), key=_rank):
        values = [side.get(path, _ABSENT) for side in sides]
        bits = [_bits(value, folder) for value, folder in zip_equal(values, folders)]
        if bits[0] != bits[1]:
            found.append(Difference(_written(path), *_in_words(*values)))
    return found


# -- leaves and their paths ------------------------------------------------------------------------------------


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        yield (*path, len), len(value)
        named = all(isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) for item in value)
        for index, item in enumerate(value):
            # Pairs of name and value, as for fastai's callbacks.
            yield from _leaves(item[1], (*path, f"[{index}] ({item[0]})")) if named else _leaves(item, (*path, index))
    elif path[:1] != (_FILE_SIZES,) and (path[:1] + path[-1:]) not in _CLOCKS:
        yield path, value


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
    """Return a value that is equal for two leaves exactly if they have the same bits; durations count as equal."""
    import numpy as np

    if value is _ABSENT or value is None or isinstance(value, (bool, int)):
        return type(value), value
    if isinstance(value, str):
        return str, "" if _DURATION.fullmatch(value) else value.replace(folder, "") if folder else value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return float, struct.pack("<d", value)
    array = _array(value)
    return str(getattr(value, "dtype", type(value))), array.shape, array.tobytes()


def _array(value: Any) -> Any:
    """Return a leaf as a NumPy array; as an array of bytes if NumPy lacks its dtype."""
    import numpy as np

    if not hasattr(value, "detach"):
        return np.asarray(value)
    try:
        return value.detach().cpu().contiguous().numpy()
    except TypeError:
        return bytes_of_tensor(value)


def _in_words(one: Any, other: Any) -> tuple[str, ...]:
    """Return both values as text; for arrays of one shape and dtype, the first differing numbers and their index."""
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
