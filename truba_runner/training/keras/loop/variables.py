"""Read, compare and set the variables that a walk has found in a Keras training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truba_runner.training.keras.internals.private_names import copies_of
from truba_runner.training.walk.objects import Found

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A training stands still while its variables are copied; more threads than this no longer copy faster.
_MOST_THREADS = 4
# Path, shape and dtype of each variable; lists, since JSON has no tuples.
Signature = list[list[Any]]


@dataclass(frozen=True)
class _Slot:
    """One value of a variable: a single device's own, or the one that all devices share."""

    # The variables that hold the value; the first is read, all are set.
    copies: list[Any]
    # Whether evaluation may change it, as a metric, a seed, or an RNN's state.
    small: bool
    # Whether it is a single device's own.
    own: bool


class Variables:
    """The variables of one walk. The own value of a further device has a number after its path: `PATH@1`."""

    def __init__(self, model: Any, found: Found) -> None:
        """`found`: a walk from the model and from everything else that the training depends on."""
        slots = list(_slots(found, _agreed(model, found)))
        weights = {id(copies_of(weight)[0]) for weight in model.weights}
        # Weights first: a changed layer is reported by its weights, not by the optimizer's variables for them.
        self._slots = dict(sorted(slots, key=lambda slot: id(slot[1].copies[0]) not in weights))

    def signature(self) -> Signature:
        """Return path, shape and dtype of each variable: the model's weights first, else in the walk's order."""
        return [[path, list(slot.copies[0].shape), slot.copies[0].dtype.name] for path, slot in self._slots.items()]

    def read(self, small: bool = False) -> dict[str, NDArray[Any]]:
        """Return a copy of each variable by path; `small`: only of those that evaluation may change."""
        chosen = {path: slot.copies[0] for path, slot in self._slots.items() if slot.small or not small}
        if small:
            return {path: variable.numpy() for path, variable in chosen.items()}
        # Copying releases the interpreter's lock.
        with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
            return dict(zip(chosen, pool.map(lambda variable: variable.numpy(), chosen.values())))

    def own(self) -> list[str]:
        """Return the paths of values that are a single device's own."""
        return [path for path, slot in self._slots.items() if slot.own]

    def assign(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the variables to what `read` returned."""
        for path, array in arrays.items():
            for copy in self._slots[path].copies:
                copy.assign(array)


def _agreed(model: Any, found: Found) -> set[int]:
    """Return ids of variables that are equal on all devices by construction, unlike seeds and the sums of metrics."""
    import keras

    agreed = {id(variable) for variable in model.trainable_variables}
    for thing in found.objects.values():
        if isinstance(thing, keras.optimizers.Optimizer):
            agreed |= {id(variable) for variable in thing.variables}
    return agreed


def _slots(found: Found, agreed: set[int]) -> Iterator[tuple[str, _Slot]]:
    for path, piece in found.pieces.items():
        if piece.kind != "variable":
            continue
        copies = copies_of(piece.thing)
        own = id(piece.thing) not in agreed
        for number, group in enumerate([[copy] for copy in copies] if own else [copies]):
            yield (f"{path}@{number}" if number else path), _Slot(group, small=own, own=own)
