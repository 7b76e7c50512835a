"""What a Keras training depends on: the objects that a walk begins at, and making those that the first step makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_own import has_call, has_own
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_replicas import build_in_step, starts_from_weights
from truba_runner.backends.walk import Found, walk
from truba_runner.backends.walk_kinds import home, is_framework
from truba_runner.errors import Failed
from truba_runner.language import _


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


def is_built_first(model: Any, devices: int) -> bool:
    """Whether a run's first start, too, makes what the first step makes before it.

    Some optimizers start from the weights there alone; on several devices a job's own step may make what no later start
    could make again, and better said at once than after an interruption.
    """
    return starts_from_weights(model.optimizer) or (
        devices > 1 and has_own(model, "train_step") and not model.run_eagerly
    )


def build(model: Any, plan: Plan, team: Team | None) -> None:
    """Makes what Keras would make in the first step only: metrics, optimizers' variables, some models' weights.

    The model's own `train_step` is traced, so that all is made that it makes; but no step is trained. Eager code cannot
    be traced: a step is trained, and what it has made is set back to how it was made.
    """
    import tensorflow as tf

    strategy = model.distribute_strategy
    several = strategy.num_replicas_in_sync > 1
    before_the_step = several or starts_from_weights(model.optimizer)
    if before_the_step and has_call(model):
        with strategy.scope():
            model._symbolic_build(data_batch=plan.example())
    batches = plan.dataset if team else strategy.experimental_distribute_dataset(plan.batches)

    def step(data: Any) -> Any:
        return strategy.run(model.train_step, args=(data,))

    def take() -> None:
        if model.run_eagerly:
            # Another iterator over a Dataset that is shuffled would give later ones another order.
            _train_a_step(step, next(iter(batches)) if several else plan.example())
        else:
            _trace(tf.function(step, autograph=False), batches.element_spec)

    if before_the_step:
        build_in_step(model, _optimizers(model), take)
    else:
        take()


def _optimizers(model: Any) -> list[Any]:
    import keras

    found = walk({"model": model}).objects.values()
    return [thing for thing in found if isinstance(thing, keras.optimizers.Optimizer)]


def _trace(step: Any, spec: Any) -> None:
    from tensorflow.python.ops.op_selector import UnliftableError

    try:
        step.get_concrete_function(spec)
    except UnliftableError as error:
        raise Failed(
            _(
                "The training step makes variables that cannot be made before it on several devices: a run cannot "
                "resume. Make them in build_model, or train on one GPU."
            )
        ) from error


def _train_a_step(step: Any, batch: Any) -> None:
    import tensorflow as tf

    made: list[tuple[Any, Any]] = []

    def creator(create: Any, **arguments: Any) -> Any:
        variable = create(**arguments)
        made.append((variable, variable.numpy()))
        return variable

    try:
        with tf.variable_creator_scope(creator):
            step(batch)
    finally:  # Where an optimizer asks for its variables the step begins anew.
        for variable, value in made:
            variable.assign(value)
