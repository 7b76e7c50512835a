"""Checkpoint the state that differs between ranks, such as a recurrent network's state after the rank's own rows.

A checkpoint holds rank 0's state and, for every other rank, its differences: in most trainings none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from truba_runner.training.fastai.ranks import Ranks
from truba_runner.training.walk.state import bytes_of_tensor

State = dict[str, Any]
Keys = tuple[str, ...]

# Levels of keys that are compared, down to a single variable or value: part, kind, path.
_DEPTH = 3


def differences(ranks: Ranks, own: State) -> list[State]:
    """Return, for each rank but rank 0, how its state differs. Every rank calls this with its own state."""
    mine = dict(_flat(own))
    digests = {keys: _digest(value) for keys, value in mine.items()}
    first: dict[Keys, str] = ranks.gather(digests if ranks.rank == 0 else {})[0]
    other = [[list(keys), value] for keys, value in mine.items() if digests[keys] != first.get(keys)]
    lacks = [list(keys) for keys in first if keys not in mine]
    return ranks.gather({"other": other, "lacks": lacks})[1:]


def of_rank(rank: int, state: State) -> State:
    """Return a checkpoint's state as rank `rank` had it."""
    found: list[State] = state.get("others", [])
    if not 0 < rank <= len(found):
        return state
    for keys in found[rank - 1]["lacks"]:
        del _holder(state, keys)[keys[-1]]
    for keys, value in found[rank - 1]["other"]:
        _holder(state, keys)[keys[-1]] = value
    return state


def _holder(state: State, keys: list[str]) -> State:
    for key in keys[:-1]:
        state = state.setdefault(key, {})
    return state


def _flat(state: State, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in state.items():
        # A key with "~" marks a packed value of another type (see `state.packed`), not a level of keys.
        if isinstance(value, dict) and len(keys) < _DEPTH - 1 and not any(str(name).startswith("~") for name in value):
            yield from _flat(value, (*keys, key))
        else:
            yield (*keys, key), value


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)

    def take(value: Any) -> None:
        import torch

        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            digest.update(bytes_of_tensor(value))
        elif isinstance(value, dict):
            digest.update(b"{")
            for item in value.items():
                take(list(item))
        elif isinstance(value, (list, tuple)):
            digest.update(f"[{len(value)}".encode())
            for item in value:
                take(item)
        else:
            digest.update(repr(value).encode())

    take(value)
    return digest.hexdigest()
