"""fastai's learning-rate finder for a Keras model; restores the model and all random state afterwards.

The rate grows by the same factor in each step, and the smoothed loss is recorded, as in `fastai/callback/schedule.py`
of fastai 2.8. Steps run on all devices and nodes, so the rate found is that for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from truba_runner.config import lr_find
from truba_runner.config.recipe import Find
from truba_runner.training import rate_suggestions
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.compile import over_schedule
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.internals import train_function
from truba_runner.training.keras.loop.build import build
from truba_runner.training.keras.loop.trial import as_before, same_randomness
from truba_runner.training.keras.loop.walk import walk_data
from truba_runner.training.walk.state import Snapshot

# fastai's constants: weight of the previous smoothed loss, and how many times its minimum it may reach.
_SMOOTHING, _DIVERGED = 0.98, 4.0


def find_rates(
    context: Context, model: Any, plan: Plan, nodes: Nodes, splits: Mapping[str, Any], finder: Find
) -> dict[str, float | None]:
    """Run the finder and return its suggestions, as `rate_suggestions.keep` does. `splits`: result of `load_data`.

    Raises:
        truba_runner.errors.Failed: the optimizer follows a schedule, so no rate can be set.
    """
    rates: list[float] = []
    losses: list[float] = []
    with _put_back(context, model, plan, nodes, splits):
        _ramp(context, model, plan, nodes, finder, rates, losses)
    return rate_suggestions.keep(context, finder, rates, losses)


def set_rate(model: Any, rate: float) -> None:
    """Set the optimizer's learning rate.

    Raises:
        truba_runner.errors.Failed: the optimizer follows a schedule.
    """
    try:
        model.optimizer.learning_rate = rate
    except TypeError as error:
        raise over_schedule("train.lr_find") from error


def _ramp(
    context: Context, model: Any, plan: Plan, nodes: Nodes, finder: Find, rates: list[float], losses: list[float]
) -> None:
    import keras

    first, end, number = finder.ramp
    alone = context.experiment.sweep.kind == lr_find.KIND
    rate, average = first, 0.0
    set_rate(model, first)
    if alone:
        context.progress.update(epochs=1, steps_per_epoch=number)

    def step_begins(batch: int, logs: Any = None) -> None:
        nonlocal rate
        rate = first * (end / first) ** (len(losses) / number)
        model.optimizer.learning_rate = rate

    def step_ends(batch: int, logs: Any) -> None:
        nonlocal average
        # Otherwise Keras' loss is the mean since the start of the epoch.
        model.reset_metrics()
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(logs["loss"])
        rates.append(rate)
        losses.append(average / (1 - _SMOOTHING ** len(rates)))
        if alone:
            context.progress.step(1, len(losses), {"loss": losses[-1]})
        over = len(losses) >= number or losses[-1] > _DIVERGED * min(losses)
        # If one rank stopped alone, the others would wait for it.
        model.stop_training = bool(nodes.from_rank_0([int(over)])[0])

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: plan.begin(epoch),
        on_train_batch_begin=step_begins,
        on_train_batch_end=step_ends,
    )
    # If the length of an epoch is unknown: each has at least one step.
    epochs = number // plan.steps + 1 if plan.steps else number
    steps = plan.steps_per_epoch
    model.fit(plan.dataset, epochs=epochs, steps_per_epoch=steps, callbacks=[callback], shuffle=False, verbose=0)


@contextmanager
def _put_back(context: Context, model: Any, plan: Plan, nodes: Nodes, splits: Mapping[str, Any]) -> Iterator[None]:
    """Let the model train step by step inside the block; restore it, all random state and other state afterwards."""
    with same_randomness():
        data = Snapshot(walk_data(splits, model))
        # Build first: variables made only in the first step could not be restored.
        build(context, model, plan, nodes)
        ways = model.steps_per_execution, model.jit_compile
        with as_before(context, model):
            # Each step needs its own rate, and compiling takes longer than a hundred steps.
            model.steps_per_execution, model.jit_compile = 1, False
            train_function.forget(model)
            try:
                yield
            finally:
                model.steps_per_execution, model.jit_compile = ways
                train_function.forget(model)
                model.stop_training = False
        data.put_back()
        model.reset_metrics()
