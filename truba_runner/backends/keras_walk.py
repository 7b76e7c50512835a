"""What a Keras training depends on: the objects that a walk begins at, and making those that the first step makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_replicas import build_optimizer
from truba_runner.backends.keras_variables import Variables
from truba_runner.backends.walk import Found, walk
from truba_runner.backends.walk_kinds import home, is_framework


def walk_training(
    context: Context, model: Any, callbacks: Iterable[Any] = (), known: Mapping[int, str] | None = None
) -> Found:
    """What the training depends on, but for its data; `callbacks`: the config's, by the place that they have there.

    `known`: as for `walk`.
    """
    callbacks = list(callbacks)
    speaking = [callback for callback in callbacks if speaks(callback)]
    return walk({"model": model, "callbacks": callbacks, "job": context.job}, speaking=speaking, known=known)


def walk_data(splits: Mapping[str, Any], model: Any, known: Mapping[int, str] | None = None) -> Found:
    """What the data depends on: objects and functions of `load_data`'s. Arrays were copied: nothing changes them."""
    streams = {name: split for name, split in splits.items() if not isinstance(split, tuple)}
    return walk({f"data.{name}": split for name, split in streams.items()}, skip=[model], known=known)


def speaks(callback: Any) -> bool:
    """Whether a callback says its state itself."""
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


def evaluates_with_own_code(model: Any, callbacks: Iterable[Any]) -> bool:
    """Whether evaluation may change any variable: by a callback, as one that swaps weights, or by users' code."""
    import keras

    hooks = ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end")
    plain, harmless = keras.callbacks.Callback, {keras.callbacks.LambdaCallback, keras.callbacks.TensorBoard}
    for callback in callbacks:
        ours = home(type(callback)) == "truba_runner" or type(callback) in harmless
        if not ours and any(getattr(type(callback), hook) is not getattr(plain, hook) for hook in hooks):
            return True
    return any(not is_framework(type(layer)) for layer in model._flatten_layers())


def is_built(model: Any) -> bool:
    """Whether nothing is left that Keras makes in the first step; metrics may be made without any variable."""
    parts = (model, model.optimizer, model._compile_metrics, model._compile_loss)
    return all(part is None or part.built for part in parts)


def build(model: Any, plan: Plan, team: Team | None) -> None:
    """Makes what Keras would make in the first step only: metrics, optimizers' variables, some models' weights.

    The model's own `train_step` is traced, so that all is made that it makes; but no step is trained. Where tracing alone
    cannot do that, in eager code and on several devices, a step is trained and undone.
    """
    import tensorflow as tf

    strategy = model.distribute_strategy
    if team:
        team.build(model, plan.example())
        batches = plan.dataset
    else:
        if strategy.num_replicas_in_sync > 1:
            model._maybe_symbolic_build(data_batch=plan.example())
        batches = strategy.experimental_distribute_dataset(plan.batches)
    if strategy.num_replicas_in_sync > 1:
        # In a replica's part of a step Keras would make them for that replica alone.
        build_optimizer(model)

    def step(data: Any) -> Any:
        return strategy.run(model.train_step, args=(data,))

    if strategy.num_replicas_in_sync > 1 and not team:
        # TensorFlow cannot set up what a traced step of several devices makes, but by taking the step.
        _undone(model, lambda: tf.function(step, autograph=False)(_shared(strategy, plan.example())))
    elif model.run_eagerly:
        # Another iterator over a Dataset that is shuffled would give later ones another order.
        _train_a_step(step, plan.example())
    else:
        tf.function(step, autograph=False).get_concrete_function(batches.element_spec)


def _shared(strategy: Any, batch: Any) -> Any:
    """Each device's part of a batch."""
    import tensorflow as tf

    count = strategy.num_replicas_in_sync

    def part(replica: Any) -> Any:
        index = replica.replica_id_in_sync_group

        def rows(array: Any) -> Any:
            each = array.shape[0] // count
            return array[index * each : (index + 1) * each]

        return tf.nest.map_structure(rows, batch)

    return strategy.experimental_distribute_values_from_function(part)


def _undone(model: Any, step: Any) -> None:
    """Takes a step, and sets back what there was; what optimizers have made in it starts from zeros, as they do."""
    import keras
    import numpy as np

    before = Variables(model, walk({"model": model})).read()
    step()
    found = walk({"model": model})
    optimizers = [path for path, thing in found.objects.items() if isinstance(thing, keras.optimizers.Optimizer)]
    after = Variables(model, found)
    made = {path: value for path, value in after.read().items() if path not in before}
    zeros = {path: np.zeros_like(value) for path, value in made.items() if path.startswith(tuple(optimizers))}
    after.assign({**before, **zeros})


def _train_a_step(step: Any, batch: Any) -> None:
    import tensorflow as tf

    made: list[tuple[Any, Any]] = []

    def creator(create: Any, **arguments: Any) -> Any:
        variable = create(**arguments)
        made.append((variable, variable.numpy()))
        return variable

    with tf.variable_creator_scope(creator):
        step(batch)
    for variable, value in made:
        variable.assign(value)
