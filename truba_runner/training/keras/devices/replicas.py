"""Replace functions of Keras, in this process, that are wrong if several devices train one network.

On several devices Keras 3.15.1 by itself
- asks only the first device whether gradients are finite (LossScaleOptimizer), and applies another device's overflow;
- clips each device's gradients separately, before they are summed;
- fails in the first step with gradient_accumulation_steps and ema_overwrite_frequency: a tf.cond holds a merge_call;
- builds a model from the mean of all devices' batches, which fails for text, and for a GAN without `call`.

Here all devices are asked; gradients are summed, then clipped and accumulated; such conditions are decided once for all
devices; a model is built from one device's share. Classes stay Keras' own, so a saved model needs nothing of ours. The
replaced parts of optimizers are internal to Keras: other versions keep theirs, and `check` refuses what needs ours.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.keras.devices.own_methods import has_call

# The version that the replacements were tested with.
KERAS = "3.15"

# Settings of an optimizer that Keras alone gets wrong on several devices.
_NEEDING = ("clipnorm", "global_clipnorm", "clipvalue", "gradient_accumulation_steps", "ema_overwrite_frequency")
_mended = threading.Event()


def mend_keras() -> None:
    """Replace the functions, once, for all models and optimizers of this process."""
    if _mended.is_set():
        return
    _mended.set()
    from keras.src.backend.tensorflow import trainer

    trainer.TensorFlowTrainer._maybe_symbolic_build = _build_from_share
    if _is_known():
        _mend_optimizers()


def _mend_optimizers() -> None:
    from keras.src.backend.tensorflow.optimizer import TFOptimizer
    from keras.src.optimizers import base_optimizer
    from keras.src.optimizers.loss_scale_optimizer import LossScaleOptimizer

    add_up, check_finite = TFOptimizer._all_reduce_sum_gradients, LossScaleOptimizer.check_finite
    apply_gradients = TFOptimizer._backend_apply_gradients
    conditions = _Conditions(base_optimizer.ops)

    def apply_added_up(self: Any, grads: Any, variables: Any) -> None:
        if not _among_others():
            apply_gradients(self, grads, variables)
            return
        pairs = add_up(self, list(zip(grads, variables, strict=True)))
        with conditions:
            apply_gradients(self, [gradient for gradient, _variable in pairs], variables)

    def finite_everywhere(self: Any, grads: Any) -> Any:
        finite = check_finite(self, grads)
        return _everywhere(finite) if _among_others() else finite

    TFOptimizer._backend_apply_gradients = apply_added_up
    TFOptimizer._all_reduce_sum_gradients = lambda self, pairs: pairs
    LossScaleOptimizer.check_finite = finite_everywhere
    base_optimizer.ops = conditions


def check(model: Any, devices: int) -> None:
    """Refuse an optimizer that needs the replacements in a version of Keras that has none.

    Raises:
        truba_runner.errors.Failed: the optimizer would train wrongly.
    """
    import keras

    if devices == 1 or _is_known():
        return
    for optimizer in within(model.optimizer):
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        settings = ["mixed_float16"] if scales else [name for name in _NEEDING if getattr(optimizer, name, None)]
        for setting in settings:
            raise Failed(
                "Keras {found} is installed: with {setting} it trains wrongly on several devices, and is set right in "
                "Keras {keras} only. Install keras=={keras}.*, leave {setting} out (instead of mixed_float16, "
                "mixed_bfloat16 needs no scaling), or train on one GPU.",
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


def copies_of(variable: Any) -> list[Any]:
    """Return the copies of a Keras or TensorFlow variable, one for each device of this process."""
    import keras

    value = variable.value if isinstance(variable, keras.Variable) else variable
    return list(getattr(value, "values", (value,)))


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


def _is_known() -> bool:
    import keras

    found: str = keras.__version__
    return found.startswith(f"{KERAS}.")


def _build_from_share(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    """Build a model from the shapes of one device's share of a batch; without `call`, its steps build it.

    Replaces Keras' own function, which takes the mean of all shares, on all nodes.
    """
    import tensorflow as tf

    strategy = model._distribute_strategy
    if strategy is None or not has_call(model):
        return
    if iterator is not None:
        _, _, batches = next(iter(iterator))
        data_batch = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], next(batches), expand_composites=False
        )
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def _among_others() -> bool:
    """Return whether this code runs in one of several devices' part of a step."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return replica is not None and replica.num_replicas_in_sync > 1


def _everywhere(finite: Any) -> Any:
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    # Collectives over several nodes sum numbers, not booleans.
    bad = replica.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(finite, tf.float32))
    return tf.equal(bad, 0.0)


class _Conditions:
    """A proxy of `keras.ops` for the optimizers: while it is entered, a condition is decided once for all devices.

    Each device's part of a step is a thread, and enters by itself.
    """

    def __init__(self, ops: Any) -> None:
        self._ops, self._thread = ops, threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def __enter__(self) -> None:
        self._thread.entered = True

    def __exit__(self, *raised: object) -> None:
        self._thread.entered = False

    def cond(self, condition: Any, if_true: Callable[[], Any], if_false: Callable[[], Any]) -> Any:
        if not getattr(self._thread, "entered", False):
            return self._ops.cond(condition, if_true, if_false)
        import tensorflow as tf

        def across(strategy: Any, conditions: Any) -> None:
            # Conditions depend on the step count, which is equal on all devices.
            first, *_others = strategy.experimental_local_results(conditions)
            each = strategy.extended.call_for_each_replica
            self._ops.cond(first, lambda: each(_nothing(if_true)), lambda: each(_nothing(if_false)))

        tf.distribute.get_replica_context().merge_call(across, args=(condition,))
        return None


def _nothing(function: Callable[[], Any]) -> Callable[[], None]:
    def called() -> None:
        function()

    return called
