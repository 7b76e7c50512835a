"""Build before the first step what Keras builds only in it: a checkpoint is restored into these variables."""

from __future__ import annotations

from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.devices.replicas import build_in_step, starts_from_weights
from truba_runner.training.keras.internals.own_methods import has_call, has_own
from truba_runner.training.keras.internals.private_names import build_from, unliftable
from truba_runner.training.keras.loop.trial import as_before
from truba_runner.training.walk.objects import walk


def is_built_first(model: Any, devices: int) -> bool:
    """Return whether to call `build` at a run's first start too, not only when it resumes.

    Some optimizers start from the weights only if built before the first step. On several devices a job's `train_step`
    may make variables that no resume could make again: that must fail now, not after an interruption.
    """
    return starts_from_weights(model.optimizer) or (
        devices > 1 and has_own(model, "train_step") and not model.run_eagerly
    )


def build(context: Context, model: Any, plan: Plan, nodes: Nodes) -> None:
    """Build what Keras builds only in the first step: metrics, optimizers' variables, some models' weights.

    The model's own `train_step` is traced, which makes all its variables without training. Eager code cannot be traced:
    it trains one step, after which everything is reset, and new variables get their initial values.
    """
    import tensorflow as tf

    strategy = model.distribute_strategy
    several = strategy.num_replicas_in_sync > 1
    before_the_step = several or starts_from_weights(model.optimizer)
    if before_the_step and has_call(model):
        with strategy.scope():
            build_from(model, plan.example())

    def step(data: Any) -> Any:
        return strategy.run(model.train_step, args=(data,))

    def take() -> None:
        if model.run_eagerly:
            with as_before(context, model):
                _train_a_step(step, _example(plan, nodes))
        else:
            _trace(tf.function(step, autograph=False), nodes.feed(plan.batches, plan.steps).element_spec)

    if before_the_step:
        build_in_step(model, _optimizers(model), take)
    else:
        take()


def _example(plan: Plan, nodes: Nodes) -> Any:
    """Return a batch for a trial step; on several devices, each device's share of it."""
    import tensorflow as tf

    example = plan.example()
    if nodes.devices == 1:
        return example
    batches = tf.data.Dataset.from_tensors(example)
    # A team takes a share for each of its devices.
    return next(iter(nodes.feed(batches.repeat() if nodes.together else batches, 1)))


def _optimizers(model: Any) -> list[Any]:
    import keras

    found = walk({"model": model}).objects.values()
    return [thing for thing in found if isinstance(thing, keras.optimizers.Optimizer)]


def _trace(step: Any, spec: Any) -> None:
    try:
        step.get_concrete_function(spec)
    except unliftable() as error:
        raise Failed(
            "The training step creates variables that cannot be created before it on several devices, so the run "
            "could not resume. Create them in build_model, or train on one GPU."
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
    finally:  # Even if an optimizer's `build` aborts the step, which then starts again.
        for variable, value in made:
            variable.assign(value)
