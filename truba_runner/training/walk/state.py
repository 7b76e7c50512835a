"""Read the state found by a walk into plain values, find what has changed since the start, and restore it."""

from __future__ import annotations

import array
import collections
import copy
import enum
import hashlib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from truba_runner.training.walk.kinds import PLAIN, is_eager, is_tensor
from truba_runner.training.walk.objects import Found, Piece, Slot

# Arrays and lists above these sizes are compared by samples only.
_WHOLE_BYTES, _WHOLE_ITEMS, _SAMPLES = 64 << 20, 20_000, 2048

# A value and its place: the path of its holder, the slot's kind, its key, the value.
Placed = list[Any]


# -- variables, tensors, streams -------------------------------------------------------------------------------


def read(piece: Piece) -> Any:
    """Return a copy of a piece's value: an array or tensor; for a random stream, its state in dicts, tuples, arrays."""
    thing = piece.thing
    if piece.kind == "variable":
        return thing.numpy()
    if piece.kind == "tensor":
        return thing.detach().cpu().clone()
    if piece.kind == "numpy stream":
        return copy.deepcopy(thing.bit_generator.state)
    if piece.kind == "Python stream":
        return thing.getstate()
    return thing.get_state()


def write(piece: Piece, value: Any) -> None:
    """Set a piece to a value returned by `read`."""
    thing = piece.thing
    if piece.kind == "variable":
        thing.assign(value)
    elif piece.kind == "tensor":
        _write_tensor(thing, value)
    elif piece.kind == "numpy stream":
        thing.bit_generator.state = value
    elif piece.kind == "Python stream":
        thing.setstate(value)
    elif piece.kind == "torch stream":
        import torch

        thing.set_state(torch.as_tensor(value))
    else:
        thing.set_state(value)


def _write_tensor(tensor: Any, value: Any) -> None:
    """Write in place, as other objects may refer to the tensor."""
    import torch

    with torch.no_grad():
        tensor.copy_(torch.as_tensor(value))


# -- plain values ----------------------------------------------------------------------------------------------


class Start:
    """The plain values and objects of a training at its start, to find what has changed since.

    Unchanged values are not saved: a path or time of one start is no state, and corrected code keeps its new constants.
    """

    def __init__(self, found: Found) -> None:
        """Take a fingerprint of each value; arrays are not copied."""
        self._values = {path: fingerprint(slot.get()) for path, slot in found.values.items()}
        self._links: dict[str, tuple[str, type]] = {}
        # Objects and their paths by id; keeping the objects prevents that an id is used again.
        self._objects: dict[int, Any] = {}
        self.paths: dict[int, str] = {}
        self.now_also(found)

    def now_also(self, found: Found) -> None:
        """Count objects made since, such as in the first step, as part of the start: every start makes them."""
        for path, (_slot, target) in found.links.items():
            self._links.setdefault(path, (target, type(found.objects[target])))
        for path, thing in found.objects.items():
            self._objects[id(thing)] = thing
            self.paths.setdefault(id(thing), path)

    def changed(self, found: Found) -> dict[str, Placed]:
        """Return values that have changed or are new since the start, by path."""
        return {
            path: [found.holders[path], slot.kind, slot.key, frozen(slot.get())]
            for path, slot in found.values.items()
            if self._values.get(path) != fingerprint(slot.get())
        }

    def moved(self, found: Found) -> dict[str, Placed]:
        """Return places that now refer to another object of the start, by path, with the path of that object."""
        return {
            path: [found.holders[path], slot.kind, slot.key, target]
            for path, (slot, target) in found.links.items()
            if path in self._links and target != self._links[path][0] and self._knows(found.objects[target])
        }

    def made_since(self, found: Found) -> list[str]:
        """Return paths of objects that a new start would not have, or only with another class."""
        new = [
            path
            for path, (_slot, target) in found.links.items()
            if not self._knows(found.objects[target])
            and self._links.get(path, (None, None))[1] is not type(found.objects[target])
        ]
        # Only the outermost: a new object includes what it holds.
        return [path for path in new if found.holders[path] not in new]

    def _knows(self, thing: Any) -> bool:
        return id(thing) in self._objects


class Snapshot:
    """A copy of all state of a walk but variables, to restore it after a trial training."""

    def __init__(self, found: Found) -> None:
        """Copy streams, tensors and plain values."""
        self._streams = [(piece, read(piece)) for piece in found.pieces.values() if piece.kind != "variable"]
        self._values = {path: (slot, frozen(slot.get())) for path, slot in found.values.items()}
        self._links = [(slot, found.objects[target]) for slot, target in found.links.values()]
        self._found = found

    def put_back(self, made: Found | None = None) -> None:
        """Restore everything; with `made`, a walk of the present state, objects made since stay in their places."""
        before = {id(thing) for thing in self._found.objects.values()}
        for slot, thing in self._links:
            if (now := slot.get()) is not thing and (made is None or id(now) in before):
                slot.set(thing)
        for path, (slot, value) in self._values.items():
            if made is None or path in made.values:
                _set_in_place(slot, value)
        for piece, value in self._streams:
            write(piece, value)


def put(found: Found, values: Mapping[str, Placed], links: Mapping[str, Placed]) -> list[str]:
    """Restore the values of `Start.changed` and `Start.moved`; return the paths whose holder or target is missing."""
    lost = []
    for path, (holder, kind, key, value) in values.items():
        slot = found.values.get(path) or _slot(found, holder, kind, key)
        if slot is None:
            lost.append(path)
        else:
            _set_in_place(slot, value)
    for path, (holder, kind, key, target) in links.items():
        slot = _slot(found, holder, kind, key)
        if slot is None or target not in found.objects:
            lost.append(path)
        else:
            slot.set(found.objects[target])
    return lost


def _slot(found: Found, holder: str, kind: str, key: Any) -> Slot | None:
    thing = found.objects.get(holder)
    if thing is None or kind == "cell":
        return None
    return Slot(thing, kind, key)


def _set_in_place(slot: Slot, value: Any) -> None:
    """Set a value; a container or array of the same kind is refilled in place, as other objects may refer to it."""
    import numpy as np

    try:
        now = slot.get()
    except (LookupError, AttributeError, ValueError):
        now = None
    if is_tensor(now) and now.shape == value.shape:
        _write_tensor(now, value)
    elif type(now) is type(value) and isinstance(now, (list, collections.deque)):
        if len(now) == len(value):
            for index, item in enumerate(value):
                _set_in_place(Slot(now, "item", index), item)
        else:
            now.clear()
            now.extend(value)
    elif isinstance(value, dict) and isinstance(now, dict):
        _fill(now, value)
    elif isinstance(value, set) and isinstance(now, set):
        now.clear()
        now.update(value)
    elif isinstance(now, np.ndarray) and now.flags.writeable and now.shape == np.shape(value):
        now[...] = value
    elif is_eager(now):
        import tensorflow as tf

        slot.set(tf.constant(value, now.dtype))
    elif isinstance(now, enum.Enum):
        slot.set(type(now)(value))
    else:
        slot.set(value)


def _fill(now: dict[Any, Any], value: Mapping[Any, Any]) -> None:
    for key in now.keys() - value.keys():
        del now[key]
    for key, item in value.items():
        _set_in_place(Slot(now, "item", key), item)


def frozen(value: Any) -> Any:
    """Return a copy of a plain value that later steps cannot change; Enum members become their values."""
    import numpy as np

    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, array.array):
        return np.array(value)
    if is_eager(value):
        return np.array(value)
    if is_tensor(value):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        # Named tuples and TensorFlow's lists become plain tuples and lists.
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        return kind(frozen(item) for item in value)
    if isinstance(value, collections.deque):
        return collections.deque((frozen(item) for item in value), value.maxlen)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal; also works for arrays, and NaN equals NaN."""
    return fingerprint(one) == fingerprint(other)


def fingerprint(value: Any) -> bytes:
    """Return a digest of a plain value; for very large ones, of evenly spaced samples."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    import numpy as np

    if isinstance(value, PLAIN):
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="backslashreplace"))
    elif isinstance(value, dict):
        _feed_items(digest, "dict", len(value), (part for item in _some(value.items(), len(value)) for part in item))
    elif isinstance(value, (set, frozenset)):
        _feed_items(digest, "set", len(value), sorted(map(repr, value)))
    elif isinstance(value, (list, tuple, collections.deque)):
        _feed_items(digest, "list", len(value), _some(value, len(value)))
    else:
        digest.update(f"array {value.dtype if hasattr(value, 'dtype') else ''} {np.shape(value)};".encode())
        seen = _bytes_of(value)
        for part in (seen,) if seen.nbytes <= _WHOLE_BYTES else np.array_split(seen, _SAMPLES):
            digest.update(part[: _WHOLE_BYTES // _SAMPLES].data if seen.nbytes > _WHOLE_BYTES else part.data)


def _bytes_of(value: Any) -> Any:
    import numpy as np

    if is_tensor(value):
        return bytes_of_tensor(value)
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def bytes_of_tensor(tensor: Any) -> Any:
    """Return a torch tensor's bytes as a NumPy array."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _feed_items(digest: Any, kind: str, length: int, items: Iterable[Any]) -> None:
    digest.update(f"{kind} {length};".encode())
    for item in items:
        _feed(digest, item)


def _some(items: Iterable[Any], length: int) -> Iterable[Any]:
    return items if length <= _WHOLE_ITEMS else islice(items, 0, None, length // _SAMPLES)
