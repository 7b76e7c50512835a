"""Undo trial steps: afterwards the training and all random state are as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.keras.internals.private_names import drop_global_seed, global_seeds
from truba_runner.training.keras.loop.variables import Variables
from truba_runner.training.keras.loop.walk import walk_training
from truba_runner.training.walk.state import Snapshot


class Randomness:
    """A copy of the random state that is global to the process."""

    def __init__(self) -> None:
        """Copy the state of Python, NumPy and Keras."""
        import numpy as np

        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._seeds = [seed.numpy() for seed in global_seeds(create=False)]

    def put_back(self) -> None:
        """Restore the copy. If Keras had no global seed then, drop it."""
        import numpy as np

        if not self._seeds:
            drop_global_seed()
        for seed, value in zip(global_seeds(create=False), self._seeds, strict=bool(self._seeds)):
            seed.assign(value)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def as_before(context: Context, model: Any) -> Iterator[None]:
    """Let the model train in this context, then restore it; objects and variables made in here stay."""
    randomness, found = Randomness(), walk_training(context, model)
    training, variables = Snapshot(found), Variables(model, found)
    values = variables.read()
    try:
        yield
    finally:
        paths = {id(thing): path for path, thing in found.objects.items()}
        training.put_back(made=walk_training(context, model, known=paths))
        variables.assign(values)
        randomness.put_back()
