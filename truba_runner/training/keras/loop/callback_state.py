"""Save and restore the state of Keras' own callbacks, and of those with `get_state()` and `set_state(state)`.

The state of all other callbacks is found by walking them (`loop.walk`). The names of the attributes were checked with
Keras 3.15.1: what a version has renamed is not saved, and starts anew with each start.

The state that `get_state()` returns may hold numbers, text, None and arrays, in lists, tuples and dicts. It is read
after the callback's own hooks, and set after `on_train_begin` or, in the middle of an epoch, after `on_epoch_begin`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from truba_runner.errors import Failed
from truba_runner.log import warn
from truba_runner.training.keras.loop.encoding import NoState, encode
from truba_runner.training.keras.loop.walk import speaks
from truba_runner.training.walk.kinds import is_framework

# State only, no settings: EarlyStopping flips the sign of min_delta in its first epoch; restored, it is flipped twice.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "History": ("history", "epoch"),
    "EarlyStopping": ("wait", "best", "best_epoch", "best_weights", "stopped_epoch"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    "TensorBoard": ("_global_train_batch", "_global_test_batch", "_previous_epoch_iterations"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "CSVLogger": (),
    "LambdaCallback": (),
    "LearningRateScheduler": (),
    "ProgbarLogger": (),
    "RemoteMonitor": (),
    "TerminateOnNaN": (),
}


def states(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Return the state of each callback, by name."""
    found = {}
    for name, callback in _named(callbacks):
        if speaks(callback):
            # The callback changes its state while the checkpoint is written.
            found[name] = copy.deepcopy(callback.get_state())
        elif attributes := _attributes(callback):
            own = vars(callback)
            found[name] = {attribute: own[attribute] for attribute in attributes if attribute in own}
    # The history grows while the checkpoint is written.
    return {name: copy.copy(state) for name, state in found.items()}


def restore(callbacks: Sequence[Any], saved: dict[str, Any]) -> None:
    """Restore what `states` returned; warn of a callback that has no saved state and starts anew."""
    for name, callback in _named(callbacks):
        if name not in saved:
            if speaks(callback) or _attributes(callback):
                warn("the checkpoint has no state for the callback {name}: the callback starts anew", name=name)
        elif speaks(callback):
            callback.set_state(saved[name])
        else:
            vars(callback).update(saved[name])


def check(callbacks: Sequence[Any]) -> None:
    """Warn at the start of Keras' callbacks whose state attributes are not known here.

    Raises:
        truba_runner.errors.Failed: a callback's `get_state()` returned something that cannot be saved.
    """
    for name, callback in _named(callbacks):
        if speaks(callback):
            try:
                encode(callback.get_state())
            except NoState as error:
                raise Failed(
                    "get_state of the callback {name} returned {error}, which a checkpoint cannot store. It may "
                    "return numbers, text, None and arrays, in lists, tuples and dicts.",
                    name=name,
                    error=error,
                ) from error
        elif is_framework(type(callback)) and type(callback).__name__ not in _ATTRIBUTES:
            warn(
                "the callback {name} of Keras starts anew after an interruption: this version of truba_runner does "
                "not know what it remembers. Give a class derived from it get_state() and set_state(state).",
                name=name,
            )


def _attributes(callback: Any) -> tuple[str, ...]:
    """Return the state attributes of the nearest Keras class in the callback's MRO."""
    names = (kind.__name__ for kind in type(callback).__mro__ if kind.__module__.startswith("keras."))
    return next((_ATTRIBUTES[name] for name in names if name in _ATTRIBUTES), ())


def _named(callbacks: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each callback with its class name, which is numbered from the second of a class on."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} {seen[name]}"), callback
