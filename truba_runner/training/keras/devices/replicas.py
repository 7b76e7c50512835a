"""Check optimizers that several devices share, and make their variables outside of the first step.

Checked with Keras 3.15.1: an optimizer's first step calls its `build`. If a version makes the variables another way, a
model with an own `train_step` on several devices is refused, as one whose variables cannot be made before its step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.keras.internals.several_devices import KERAS, is_known

# Settings of an optimizer that Keras alone gets wrong on several devices.
_NEEDING = ("clipnorm", "global_clipnorm", "clipvalue", "gradient_accumulation_steps", "ema_overwrite_frequency")


def check(model: Any, devices: int) -> None:
    """Refuse an optimizer that needs the replacements in a version of Keras that has none.

    Raises:
        truba_runner.errors.Failed: the optimizer would train wrongly.
    """
    import keras

    if devices == 1 or is_known():
        return
    for optimizer in within(model.optimizer):
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        settings = ["mixed_float16"] if scales else [name for name in _NEEDING if getattr(optimizer, name, None)]
        for setting in settings:
            raise Failed(
                "Keras {found} is installed: with {setting} it trains wrongly on several devices, which "
                "truba_runner corrects in Keras {keras} only. Install keras=={keras}.*, leave {setting} out "
                "(instead of mixed_float16, mixed_bfloat16 needs no scaling), or train on one GPU.",
                found=keras.__version__,
                setting=setting,
                keras=KERAS,
            )


def within(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer, and the optimizers that it passes its gradients on to."""
    yield optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for one in [*([inner] if inner is not None else []), *getattr(optimizer, "optimizers", ())]:
        yield from within(one)


def starts_from_weights(optimizer: Any) -> bool:
    """Return whether the optimizer's variables start from the weights; Keras omits it if the first step makes them."""
    return any(type(one).__name__ == "ScheduleFreeAdamW" for one in within(optimizer))


def build_in_step(model: Any, optimizers: Sequence[Any], take_step: Callable[[], None]) -> None:
    """Take a step, and make outside of it the variables of `optimizers` that it would make.

    A replica's part of a step would make them for that replica alone, and any step would make them all 0. Which weights
    an optimizer is for is known only in the step: `build` then aborts the step, which starts again once they are made.
    """
    import keras

    while needed := _first_needed(optimizers, take_step):
        optimizer = needed.optimizer
        with model.distribute_strategy.scope(), keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(needed.variables)


def _first_needed(optimizers: Sequence[Any], take_step: Callable[[], None]) -> _Needed | None:
    waiting = [optimizer for optimizer in optimizers if not optimizer.built]
    for optimizer in waiting:
        optimizer.build = functools.partial(_ask, optimizer)
    try:
        take_step()
    except _Needed as needed:
        return needed
    finally:
        for optimizer in waiting:
            del optimizer.build
    return None


class _Needed(Exception):
    """Raised by an optimizer without variables when it has to apply gradients."""

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        super().__init__()
        self.optimizer, self.variables = optimizer, variables


def _ask(optimizer: Any, variables: Sequence[Any]) -> None:
    raise _Needed(optimizer, variables)
