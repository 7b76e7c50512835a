"""Read and call what Keras and TensorFlow name privately, each name once.

Checked with Keras 3.15.1 and TensorFlow 2.21.0, and with the last ones for Python 3.9, 3.10.0 and 2.20.0. A version
that renames one of these ends a training with an AttributeError or ImportError that names it. Two go unnoticed: without
`values` a mirrored variable counts as one, so that all devices resume with the first one's values; without
`_loss_tracker` a `train_step` that reports a loss of its own is refused.
"""

from __future__ import annotations

from typing import Any

# Keras' name of its global seed. Keras 3.10, the last version for Python 3.9, has no constant for it.
_GLOBAL_SEED = "global_seed_generator"


def layers_of(layer: Any) -> list[Any]:
    """Return a layer or model and all layers inside it."""
    return list(layer._flatten_layers())


def seed_generators(layer: Any) -> list[Any]:
    """Return the generators of random numbers that a layer itself has."""
    return list(layer._seed_generators)


def copies_of(variable: Any) -> list[Any]:
    """Return the copies of a Keras or TensorFlow variable, one for each device of this process."""
    import keras

    value = variable.value if isinstance(variable, keras.Variable) else variable
    return list(getattr(value, "values", (value,)))


def is_built(model: Any) -> bool:
    """Return whether the first step has nothing left to build. Variables do not show it: a metric may have none."""
    parts = (model, model.optimizer, model._compile_metrics, model._compile_loss)
    return all(part is None or part.built for part in parts)


def build_from(model: Any, example: Any) -> None:
    """Build model, metrics and loss from the shapes of a batch, without computing anything."""
    model._symbolic_build(data_batch=example)


def loss_tracker(model: Any) -> Any:
    """Return the metric in which Keras sums up the loss; None if there is none."""
    return getattr(model, "_loss_tracker", None)


def wrapped_loss(function: Any) -> Any:
    """Return a loss function as a loss, as Keras wraps it."""
    from keras.src.losses.losses import LossFunctionWrapper

    return LossFunctionWrapper(function)


def event_writers(tensorboard: Any) -> list[Any]:
    """Return the open writers of a TensorBoard callback."""
    return list(tensorboard._writers.values())


def inputs_of(dataset: Any) -> list[Any]:
    """Return the Datasets that a `tf.data.Dataset` was made from."""
    return list(dataset._inputs())


def global_seeds(create: bool) -> list[Any]:
    """Return Keras' global seed, one copy per device; empty if it does not exist and `create` is false.

    Random functions without a seed of their own use it.
    """
    from keras.src.backend.common.global_state import get_global_attribute
    from keras.src.random.seed_generator import global_seed_generator

    found = global_seed_generator() if create else get_global_attribute(_GLOBAL_SEED)
    return [] if found is None else copies_of(found.state)


def drop_global_seed() -> None:
    """Drop Keras' global seed: Keras makes it anew when needed."""
    from keras.src.backend.common.global_state import set_global_attribute

    set_global_attribute(_GLOBAL_SEED, None)


def unliftable() -> type[Exception]:
    """Return the exception of tracing a step that makes variables which cannot be made before it."""
    from tensorflow.python.ops.op_selector import UnliftableError

    found: type[Exception] = UnliftableError
    return found
