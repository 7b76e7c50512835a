"""Finds in a Dataset what gives a resumed run another order of its elements than an undisturbed one has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from truba_runner.language import marked

SHUFFLES = marked("it shuffles anew in each epoch, and a resumed run begins with the first epoch's order")
UNORDERED = marked("it gives its elements in the order in which they happen to be ready (deterministic=False)")
DRAWS = marked("it draws other random numbers in each iteration (rerandomize_each_iteration)")


def other_order(dataset: Any, one_iteration: bool) -> str:
    """Return why a `tf.data.Dataset` gives another order in another start, to be translated; empty if it does not.

    `one_iteration`: the training iterates once over the dataset, over all of its epochs: what follows from seeds is
    then the same. Datasets that are made inside the functions of `interleave` or `flat_map` cannot be seen. The names
    are internal to TensorFlow (checked with 2.21); where another version has others nothing is found.
    """
    if dataset.options().deterministic is False:
        return UNORDERED
    for part in _parts(dataset):
        if getattr(part, "_deterministic", "") == "false":
            return UNORDERED
        if not one_iteration and getattr(part, "_reshuffle_each_iteration", False):
            return SHUFFLES
        if not one_iteration and getattr(part, "_rerandomize", False):
            return DRAWS
    return ""


def _parts(dataset: Any) -> Iterator[Any]:
    yield dataset
    for source in dataset._inputs():
        yield from _parts(source)
