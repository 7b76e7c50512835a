"""Steps that are taken on trial: afterwards the training, and all that is random, is as it was before them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.keras.loop.variables import Variables, global_seeds
from truba_runner.training.keras.loop.walk import walk_training
from truba_runner.training.walk.state import Snapshot


class Randomness:
    """The random numbers that all of a process share, as they are now."""

    def __init__(self) -> None:
        """Copies what they follow from."""
        import numpy as np

        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._seeds = [seed.numpy() for seed in global_seeds(create=False)]

    def put_back(self) -> None:
        """The seed that all share who were given none: one that was not there is made anew when it is needed."""
        import numpy as np
        from keras.src.backend.common.global_state import set_global_attribute
        from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

        if not self._seeds:
            set_global_attribute(GLOBAL_SEED_GENERATOR, None)
        for seed, value in zip(global_seeds(create=False), self._seeds, strict=bool(self._seeds)):
            seed.assign(value)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def as_before(context: Context, model: Any) -> Iterator[None]:
    """In here the model may train; afterwards it is as it was, but for what was made: that is there to stay."""
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
