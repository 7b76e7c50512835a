"""Every variable that the rest of a training depends on: read into arrays, compared, and set again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Keras numbers names by what else the process has built: dense_3 of one start is dense_7 of another.
_NUMBER = re.compile(r"_\d+(?=/|$)")

Signature = list[list[Any]]


@dataclass(frozen=True)
class _Slot:
    """One copy of a variable: on a device that has its own, or the one that all devices agree on."""

    name: str
    # All that are set to the value; the first is the one that is read.
    copies: list[Any]
    # Evaluation changes it: a metric, or a seed.
    small: bool
    # Not every device has the same.
    own: bool

    @property
    def signature(self) -> list[Any]:
        """As JSON gives it back."""
        return [self.name, list(self.copies[0].shape), self.copies[0].dtype.name]


class Variables:
    """Those of a model, its optimizer and its metrics, and the seeds of its random layers."""

    def __init__(self, model: Any) -> None:
        """They are looked up each time: Keras makes some of them in the first step."""
        self._model = model

    def signature(self) -> Signature:
        """Name, shape and dtype of each, in a fixed order."""
        return [slot.signature for slot in self._slots()]

    def read(self) -> list[NDArray[Any]]:
        """A copy of each, in the signature's order."""
        return [slot.copies[0].numpy() for slot in self._slots()]

    def read_small(self) -> dict[int, NDArray[Any]]:
        """Those that evaluation changes, by their place in the signature."""
        return {index: slot.copies[0].numpy() for index, slot in enumerate(self._slots()) if slot.small}

    def own(self) -> list[int]:
        """The places in the signature of those that each device has by itself."""
        return [index for index, slot in enumerate(self._slots()) if slot.own]

    def assign(self, arrays: list[NDArray[Any]]) -> None:
        """Sets what `read` read."""
        for slot, array in zip(self._slots(), arrays, strict=True):
            for copy in slot.copies:
                copy.assign(array)

    def _slots(self) -> list[_Slot]:
        model = self._model
        weights = {id(variable) for variable in model.weights}
        # All devices agree on these by construction. On the rest, sums of metrics or seeds, each has its own.
        agreed = {id(variable) for variable in [*model.trainable_variables, *model.optimizer.variables]}
        slots: dict[int, list[_Slot]] = {}
        for variable in [*model.variables, *model.optimizer.variables, *model.metrics_variables]:
            copies = list(getattr(variable.value, "values", (variable.value,)))
            name = _NUMBER.sub("", variable.path)
            small = id(variable) not in agreed | weights
            own = id(variable) not in agreed
            groups = [[copy] for copy in copies] if own else [copies]
            slots[id(variable)] = [_Slot(name, group, small, own) for group in groups]
        return [slot for group in slots.values() for slot in group]


def global_seeds(create: bool) -> list[Any]:
    """The seed, a copy a device, of random functions that were given none of their own; empty where none was used.

    Keras has no public name for it.
    """
    from keras.src.backend.common.global_state import get_global_attribute
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

    found = global_seed_generator() if create else get_global_attribute(GLOBAL_SEED_GENERATOR)
    return [] if found is None else list(getattr(found.state.value, "values", (found.state.value,)))


def generator_states(owners: Iterable[Any]) -> list[Any]:
    """The state, a copy a device, of each tf.random.Generator that one of `owners` has as an attribute.

    It may also stand in a list, a tuple or a dict there.
    """
    found = {id(generator): generator for owner in owners for generator in _generators(vars(owner))}
    states = [generator.state for generator in found.values()]
    return [copy for state in states for copy in getattr(state, "values", (state,))]


def _generators(attributes: Mapping[str, Any]) -> Iterator[Any]:
    import tensorflow as tf

    for value in list(attributes.values()):
        held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        yield from (item for item in held if isinstance(item, tf.random.Generator))
