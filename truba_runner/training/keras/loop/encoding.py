"""Encode a training's state as bytes: JSON, then the arrays that it refers to. Decoding runs no code."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from truba_runner.language import _

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LENGTH_BYTES = 8
# A dict with one key that starts with this represents a type that JSON lacks.
_MARK = "~"
_SEQUENCES: dict[str, Any] = {f"{_MARK}tuple": tuple, f"{_MARK}set": set, f"{_MARK}frozenset": frozenset}


class NoState(TypeError):
    """A value that cannot be encoded."""


@dataclass(frozen=True)
class Encoded:
    """An encoded state. Its arrays are shared with the caller; later changes to anything else do not affect it."""

    text: bytes
    arrays: list[NDArray[Any]]

    def write(self, file: IO[bytes]) -> None:
        """Append the state to `file`; `decode` reads it."""
        import numpy as np

        file.write(len(self.text).to_bytes(_LENGTH_BYTES, "little") + self.text)
        for array in self.arrays:
            # Some TensorFlow dtypes have no buffer interface; their bytes have.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def encode(value: Any) -> Encoded:
    """Encode numbers, text, bytes, None, arrays and tensors, in lists, tuples, sets, deques and dicts of any depth.

    Raises:
        NoState: the value contains something else.
    """
    arrays: list[NDArray[Any]] = []
    tree = _encode(value, arrays)
    kinds = [[_dtype_name(array), list(array.shape)] for array in arrays]
    return Encoded(json.dumps({"arrays": kinds, "tree": tree}).encode(), arrays)


def decode(file: IO[bytes]) -> Any:
    """Decode what `Encoded.write` wrote, from the file's current position.

    Raises:
        ValueError: the bytes are something else, or truncated.
    """
    import numpy as np

    header = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
    arrays = []
    for dtype, shape in header["arrays"]:
        array = np.empty(shape, np.dtype(dtype))
        if array.nbytes and file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
            raise ValueError(_("it ends in the middle of an array"))
        arrays.append(array)
    return _decode(header["tree"], arrays)


def _encode(value: Any, arrays: list[NDArray[Any]]) -> Any:
    import numpy as np

    # Before the plain numbers: numpy's float64 is a float too.
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "numpy"):
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        if array.dtype.hasobject:
            raise NoState(_("an array of Python objects"))
        arrays.append(array)
        return {f"{_MARK}{'scalar' if isinstance(value, np.generic) else 'array'}": len(arrays) - 1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [_encode(item, arrays) for item in value]}
    if isinstance(value, deque):
        return {f"{_MARK}deque": [value.maxlen, [_encode(item, arrays) for item in value]]}
    if isinstance(value, bytes):
        return {f"{_MARK}bytes": value.hex()}
    if isinstance(value, complex):
        return {f"{_MARK}complex": [value.real, value.imag]}
    if isinstance(value, list):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, Mapping):
        items = [[_encode(key, arrays), _encode(item, arrays)] for key, item in value.items()]
        plain = all(isinstance(key, str) and not key.startswith(_MARK) for key in value)
        return dict(items) if plain else {f"{_MARK}dict": items}
    raise NoState(_("a {kind}", kind=type(value).__name__))


def _decode(tree: Any, arrays: list[NDArray[Any]]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind: str
    content: Any
    kind, content = next(iter(tree.items()), ("", None))
    if kind == "~array":
        return arrays[content]
    if kind == "~scalar":
        return arrays[content][()]
    if kind in ("~tuple", "~set", "~frozenset"):
        return _SEQUENCES[kind](_decode(item, arrays) for item in content)
    if kind == "~deque":
        return deque((_decode(item, arrays) for item in content[1]), content[0])
    if kind == "~bytes":
        return bytes.fromhex(content)
    if kind == "~complex":
        return complex(*content)
    if kind == "~dict":
        return {_decode(key, arrays): _decode(item, arrays) for key, item in content}
    return {key: _decode(item, arrays) for key, item in tree.items()}


def _dtype_name(array: NDArray[Any]) -> str:
    # bfloat16 and similar dtypes are not numpy's own: only their names identify them.
    return str(array.dtype.name if array.dtype.kind == "V" else array.dtype.str)
