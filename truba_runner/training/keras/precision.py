"""Set a Keras model's mixed precision, and scale its learning rate for several devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.log import info
from truba_runner.training.keras.compile import follows_schedule


@contextmanager
def precision(policy: str | None) -> Iterator[None]:
    """Give layers made inside the block this dtype policy; restore Keras' previous policy afterwards."""
    import keras

    before = keras.config.dtype_policy()
    if policy is not None:
        keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def scale_learning_rate(model: Any, train: Train, devices: int) -> None:
    """Multiply the learning rate by the number of devices if the config asks for it.

    Raises:
        truba_runner.errors.Failed: the optimizer follows a schedule, which has no single rate.
    """
    import keras

    if not train.scale_learning_rate or devices == 1:
        return
    if follows_schedule(model.optimizer):
        raise Failed(
            "train.scale_learning_rate=true: this optimizer follows a schedule, and has no single rate to multiply. "
            "Scale the schedule's own settings, and leave train.scale_learning_rate out."
        )
    scaled = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) * devices
    model.optimizer.learning_rate = scaled
    info("learning rate {scaled:g}: that of one device, times {devices}", scaled=scaled, devices=devices)
