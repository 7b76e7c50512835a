"""Replace functions of Keras, in this process, that are wrong if several devices train one network.

On several devices Keras 3.15.1 by itself
- asks only the first device whether gradients are finite (LossScaleOptimizer), and applies another device's overflow;
- clips each device's gradients separately, before they are summed;
- fails in the first step with gradient_accumulation_steps and ema_overwrite_frequency: a tf.cond holds a merge_call;
- builds a model from the mean of all devices' batches, which fails for text, and for a GAN without `call`.

Here all devices are asked; gradients are summed, then clipped and accumulated; such conditions are decided once for all
devices; a model is built from one device's share. Classes stay Keras' own, so a saved model needs nothing of ours.

Checked with Keras 3.15.1 and TensorFlow 2.21.0. Other versions than 3.15 keep their optimizers, and `replicas.check`
refuses those that train wrongly. `_maybe_symbolic_build` is replaced in every version: where Keras does not call it,
text and GANs fail again in the first step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from truba_runner.older_python import zip_equal
from truba_runner.training.keras.internals.own_methods import has_call
from truba_runner.training.keras.internals.private_names import build_from

# The version whose optimizers are replaced.
KERAS = "3.15"

_mended = threading.Event()


def mend_keras() -> None:
    """Replace the functions, once, for all models and optimizers of this process."""
    if _mended.is_set():
        return
    _mended.set()
    from keras.src.backend.tensorflow import trainer

    trainer.TensorFlowTrainer._maybe_symbolic_build = _build_from_share
    if is_known():
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
        pairs = add_up(self, list(zip_equal(grads, variables)))
        with conditions:
            apply_gradients(self, [gradient for gradient, _variable in pairs], variables)

    def finite_everywhere(self: Any, grads: Any) -> Any:
        finite = check_finite(self, grads)
        return _everywhere(finite) if _among_others() else finite

    TFOptimizer._backend_apply_gradients = apply_added_up
    TFOptimizer._all_reduce_sum_gradients = lambda self, pairs: pairs
    LossScaleOptimizer.check_finite = finite_everywhere
    base_optimizer.ops = conditions


def is_known() -> bool:
    """Return whether the installed Keras is the version whose optimizers are replaced."""
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
        # Keras 3.15 yields an execution's first step, its last step and its batches; Keras 3.10 no last step.
        *_steps, batches = next(iter(iterator))
        data_batch = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], next(batches), expand_composites=False
        )
    with strategy.scope():
        build_from(model, data_batch)


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
