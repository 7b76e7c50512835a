"""Undo trial steps: afterwards the training and all random state are as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.older_python import zip_equal
from truba_runner.training.backend import Context
from truba_runner.training.keras.internals.private_names import drop_global_seed, global_seeds
from truba_runner.training.keras.loop.variables import Variables
from truba_runner.training.keras.loop.walk import walk_training
from truba_runner.training.walk.state import Snapshot


@contextmanager
def same_randomness() -> Iterator[None]:
    """Restore after the block the random state of Python, NumPy and Keras that is global to the process.

    If Keras had no global seed before, drop it: Keras makes it anew when needed.
    """
    import numpy as np

    python, of_numpy = random.getstate(), np.random.get_state()
    seeds = [seed.numpy() for seed in global_seeds(create=False)]
    try:
        yield
    finally:
        if not seeds:
            drop_global_seed()
        for seed, value in zip_equal(global_seeds(create=False) if seeds else [], seeds):
            seed.assign(value)
        random.setstate(python)
        np.random.set_state(of_numpy)


@contextmanager
def as_before(context: Context, model: Any) -> Iterator[None]:
    """Let the model train in this context, then restore it; objects and variables made in here stay."""
    with same_randomness():
        found = walk_training(context, model)
        training, variables = Snapshot(found), Variables(model, found)
        values = variables.read()
        try:
            yield
        finally:
            paths = {id(thing): path for path, thing in found.objects.items()}
            training.put_back(made=walk_training(context, model, known=paths))
            variables.assign(values)
