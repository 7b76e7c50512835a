"""What callbacks remember from epoch to epoch: Keras' own, and any other that can say it itself.

What all others remember is found by walking them (`keras_walk`).

A callback with `get_state()` and `set_state(state)` joins the exact resume. The state is of numbers, text, None and
arrays, in lists, tuples and dicts. It is asked for after the callback's own hooks have run, and given back after
`on_train_begin`, and in the middle of an epoch after `on_epoch_begin`.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.keras.loop.encoding import NoState, encode
from truba_runner.training.keras.loop.walk import speaks
from truba_runner.training.walk.kinds import is_framework

# State alone, never settings: EarlyStopping turns the sign of min_delta at its first epoch, and would turn it again.
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
    """What each of them remembers, by name."""
    found = {}
    for name, callback in _named(callbacks):
        if speaks(callback):
            # What it goes on changing must not change what is being written.
            found[name] = copy.deepcopy(callback.get_state())
        elif attributes := _attributes(callback):
            own = vars(callback)
            found[name] = {attribute: own[attribute] for attribute in attributes if attribute in own}
    # The history grows while it is written.
    return {name: copy.copy(state) for name, state in found.items()}


def restore(callbacks: Sequence[Any], saved: dict[str, Any]) -> None:
    """Gives each of them back what `states` found; one that was not there then starts anew and is named."""
    for name, callback in _named(callbacks):
        if name not in saved:
            if speaks(callback) or _attributes(callback):
                _warn(_("the checkpoint knows no callback {name}: it starts anew", name=name))
        elif speaks(callback):
            callback.set_state(saved[name])
        else:
            vars(callback).update(saved[name])


def check(callbacks: Sequence[Any]) -> None:
    """Warns of callbacks of Keras' whose state nobody knows, before it is missed.

    Raises:
        truba_runner.errors.Failed: what one of them gives as its state cannot be saved.
    """
    for name, callback in _named(callbacks):
        if speaks(callback):
            try:
                encode(callback.get_state())
            except NoState as error:
                raise Failed(
                    _(
                        "get_state of the callback {name} returned {error}, which no checkpoint can hold. It may "
                        "return numbers, text, None and arrays, in lists, tuples and dicts.",
                        name=name,
                        error=error,
                    )
                ) from error
        elif is_framework(type(callback)) and type(callback).__name__ not in _ATTRIBUTES:
            _warn(
                _(
                    "the callback {name} of Keras starts anew after an interruption: this version of truba_runner "
                    "does not know what it remembers. Give a class derived from it get_state() and set_state(state).",
                    name=name,
                )
            )


def _attributes(callback: Any) -> tuple[str, ...]:
    """Those of the nearest of Keras' classes that it is derived from."""
    names = (kind.__name__ for kind in type(callback).__mro__ if kind.__module__.startswith("keras."))
    return next((_ATTRIBUTES[name] for name in names if name in _ATTRIBUTES), ())


def _named(callbacks: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each with its class's name; a second of the same class has a number too."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} {seen[name]}"), callback


def _warn(text: str) -> None:
    print(_("WARNING: {text}", text=text), file=sys.stderr, flush=True)
