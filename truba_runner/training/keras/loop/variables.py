"""The variables that a walk has found in a Keras training: read into arrays, compared, and set again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truba_runner.training.walk.objects import Found

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The path of a variable, its shape and its dtype: as JSON gives them back.
Signature = list[list[Any]]


@dataclass(frozen=True)
class _Slot:
    """One copy of a variable: on a device that has its own, or the one that all devices agree on."""

    # All that are set to the value; the first is the one that is read.
    copies: list[Any]
    # Evaluation may change it, as a metric, a seed, or an RNN's state.
    small: bool
    # Not every device has the same.
    own: bool


class Variables:
    """Those of one walk. A second copy of a variable, on another device, has a number behind its path: `PATH@1`."""

    def __init__(self, model: Any, found: Found) -> None:
        """`found`: a walk whose roots are the model and what else the training depends on."""
        slots = list(_slots(found, _agreed(model, found)))
        weights = {id(getattr(weight.value, "values", (weight.value,))[0]) for weight in model.weights}
        # A changed layer is said by its weights, and not by what an optimizer has for each of them.
        self._slots = dict(sorted(slots, key=lambda slot: id(slot[1].copies[0]) not in weights))

    def signature(self) -> Signature:
        """Path, shape and dtype of each: the model's weights first, else in the order in which they were found."""
        return [[path, list(slot.copies[0].shape), slot.copies[0].dtype.name] for path, slot in self._slots.items()]

    def read(self, small: bool = False) -> dict[str, NDArray[Any]]:
        """A copy of each; `small`: of those alone that evaluation may change."""
        return {path: slot.copies[0].numpy() for path, slot in self._slots.items() if slot.small or not small}

    def own(self) -> list[str]:
        """The paths of those that each device has by itself."""
        return [path for path, slot in self._slots.items() if slot.own]

    def assign(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Sets what `read` read."""
        for path, array in arrays.items():
            for copy in self._slots[path].copies:
                copy.assign(array)


def _agreed(model: Any, found: Found) -> set[int]:
    """Variables on which all devices agree by construction; on sums of metrics or seeds each has its own."""
    import keras

    agreed = {id(variable) for variable in model.trainable_variables}
    for thing in found.objects.values():
        if isinstance(thing, keras.optimizers.Optimizer):
            agreed |= {id(variable) for variable in thing.variables}
    return agreed


def _slots(found: Found, agreed: set[int]) -> Iterator[tuple[str, _Slot]]:
    import keras

    for path, piece in found.pieces.items():
        if piece.kind != "variable":
            continue
        variable = piece.thing.value if isinstance(piece.thing, keras.Variable) else piece.thing
        copies = list(getattr(variable, "values", (variable,)))
        own = id(piece.thing) not in agreed
        for number, group in enumerate([[copy] for copy in copies] if own else [copies]):
            yield (f"{path}@{number}" if number else path), _Slot(group, small=own, own=own)


def global_seeds(create: bool) -> list[Any]:
    """The seed, a copy a device, of random functions that were given none of their own; empty where none was used.

    Keras has no public name for it.
    """
    from keras.src.backend.common.global_state import get_global_attribute
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

    found = global_seed_generator() if create else get_global_attribute(GLOBAL_SEED_GENERATOR)
    return [] if found is None else list(getattr(found.state.value, "values", (found.state.value,)))
