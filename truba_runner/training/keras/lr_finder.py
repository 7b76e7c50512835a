"""The learning-rate finder for Keras: fastai's, on a Keras model. It leaves the model and all that is random as it was.

The rate grows from step to step by the same factor, and the smoothed loss is noted: `fastai/callback/schedule.py` of
fastai 2.8. A step is one of training, on all devices and nodes: what is found is the rate for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from truba_runner.config import lr_find
from truba_runner.config.recipe import Find
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training import rate_suggestions
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.team import Team
from truba_runner.training.keras.loop.build import build
from truba_runner.training.keras.loop.trial import Randomness, as_before
from truba_runner.training.keras.loop.walk import walk_data
from truba_runner.training.walk.state import Snapshot

# How much of the smoothed loss is what it was before, and how far over its lowest it may rise: fastai's.
_SMOOTHING, _DIVERGED = 0.98, 4.0


def find_rates(
    context: Context, model: Any, plan: Plan, team: Team | None, splits: Mapping[str, Any], finder: Find
) -> dict[str, float | None]:
    """Runs the finder, and returns what each of the four ways suggests; None where it finds nothing to suggest.

    `splits`: what `load_data` returned. The curve goes to `lr_find_NAME.json` and `plots/lr_find_NAME.png`.

    Raises:
        truba_runner.errors.Failed: the optimizer follows a schedule, which has no rate to be set.
    """
    rates: list[float] = []
    losses: list[float] = []
    with _put_back(context, model, plan, team, splits):
        _ramp(context, model, plan, team, finder, rates, losses)
    return rate_suggestions.keep(context, finder, rates, losses)


def set_rate(model: Any, rate: float) -> None:
    """Sets the optimizer's rate.

    Raises:
        truba_runner.errors.Failed: it follows a schedule.
    """
    try:
        model.optimizer.learning_rate = rate
    except TypeError as error:
        raise Failed(
            _(
                "train.lr_find: this optimizer follows a schedule, and has no single rate to set. Leave the schedule "
                "out of train.optimizer (or of build_model, where that compiles the model), or leave train.lr_find "
                "out."
            )
        ) from error


def _ramp(
    context: Context,
    model: Any,
    plan: Plan,
    team: Team | None,
    finder: Find,
    rates: list[float],
    losses: list[float],
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
        # Keras would give the mean since the epoch's beginning.
        model.reset_metrics()
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(logs["loss"])
        rates.append(rate)
        losses.append(average / (1 - _SMOOTHING ** len(rates)))
        if alone:
            context.progress.step(1, len(losses), {"loss": losses[-1]})
        over = len(losses) >= number or losses[-1] > _DIVERGED * min(losses)
        # Whoever stopped alone would be waited for.
        model.stop_training = bool(team.from_rank_0([int(over)])[0]) if team else over

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: plan.begin(epoch),
        on_train_batch_begin=step_begins,
        on_train_batch_end=step_ends,
    )
    # Where nobody knows how long an epoch is, each has a step at least.
    epochs = number // plan.steps + 1 if plan.steps else number
    steps = plan.steps_per_epoch
    model.fit(plan.dataset, epochs=epochs, steps_per_epoch=steps, callbacks=[callback], shuffle=False, verbose=0)


@contextmanager
def _put_back(context: Context, model: Any, plan: Plan, team: Team | None, splits: Mapping[str, Any]) -> Iterator[None]:
    """In here the model trains step by step; afterwards it, and all that is random or else state, is as it was."""
    randomness, data = Randomness(), Snapshot(walk_data(splits, model))
    # What is made in the first step only could not be put back.
    build(context, model, plan, team)
    ways = model.steps_per_execution, model.jit_compile
    with as_before(context, model):
        # A rate for each step; and compiling takes longer than a hundred steps.
        model.steps_per_execution, model.jit_compile = 1, False
        model.train_function = None
        try:
            yield
        finally:
            model.steps_per_execution, model.jit_compile = ways
            model.train_function, model.stop_training = None, False
    data.put_back()
    model.reset_metrics()
    randomness.put_back()
