"""Callbacks that begin and end the epochs of data whose epochs Keras' loop does not know.

Given a PyDataset, Keras' `fit` calls its epoch hooks and ends its epochs; here `fit` gets a Dataset that has no end.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.batches.py_dataset import PyDatasetPlan
from truba_runner.training.keras.internals import train_function


def around(model: Any, plans: Mapping[str, Plan]) -> tuple[list[Any], list[Any]]:
    """Return the callbacks to put before all others in a `fit`, and those to put after them."""
    first, last = evaluated(plans.get("validation"))
    plan = plans["train"]
    if not plan.varies:
        return first, last
    first.append(_callback(on_train_begin=lambda logs: _train_begins(model, plan)))
    if isinstance(plan, PyDatasetPlan):
        last.append(_callback(on_epoch_begin=lambda epoch, logs: plan.begins()))
    return first, last


def evaluated(plan: Plan | None) -> tuple[list[Any], list[Any]]:
    """Return the callbacks to put before and after all others for evaluation, prediction or validation in a `fit`."""
    if not isinstance(plan, PyDatasetPlan):
        return [], []
    split = plan.source
    first = _callback(
        # Keras calls on_epoch_end before the first epoch too, except in a prediction.
        on_test_begin=lambda logs: split.on_epoch_end(),
        on_test_end=lambda logs: split.on_epoch_end(),
        on_predict_end=lambda logs: split.on_epoch_end(),
    )
    last = _callback(
        on_test_begin=lambda logs: split.on_epoch_begin(), on_predict_begin=lambda logs: split.on_epoch_begin()
    )
    return [first], [last]


def _train_begins(model: Any, plan: Plan) -> None:
    import tensorflow as tf

    # Keras warns so at each end that it did not expect.
    warnings.filterwarnings("ignore", message="Your input ran out of data")
    if isinstance(plan, PyDatasetPlan):
        plan.source.on_epoch_end()

    def until_it_ends(execution: train_function.Execution, iterator: Any) -> Any:
        try:
            if plan.is_over():
                raise StopIteration
            return execution(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            plan.ends()
            raise

    train_function.wrap(model, until_it_ends)


def _callback(**functions: Any) -> Any:
    import keras

    return keras.callbacks.LambdaCallback(**functions)
