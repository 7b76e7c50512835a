"""The devices that a Keras job trains on, and what follows from how many there are."""

from __future__ import annotations

from typing import Any

from truba_runner.backends.missing_gpus import tell_of_missing_gpus
from truba_runner.config import Train
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training_rules import divisible_sizes


def pick_devices(gpus_asked: int) -> list[str]:
    """All GPUs that TensorFlow sees, as `GPU:0`; without one, as many logical CPU devices as GPUs were asked for.

    Raises:
        truba_runner.errors.Failed: GPUs were asked for and are there, but TensorFlow cannot use them.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return [f"GPU:{index}" for index in range(len(gpus))]
    if gpus_asked:
        tell_of_missing_gpus(gpus_asked, "TensorFlow", "tensorflow[and-cuda]")
    count = max(1, gpus_asked)
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        except RuntimeError as error:
            raise Failed(
                _(
                    "TensorFlow was in use before its {count} devices could be set up. Move what the job's module "
                    "computes with TensorFlow at its top level into build_model or load_data.",
                    count=count,
                )
            ) from error
    return [f"CPU:{index}" for index in range(count)]


def check_batch_size(batch_size: int, devices: int) -> None:
    """Refuses a batch that does not divide among the devices.

    Raises:
        truba_runner.errors.Failed: it does not.
    """
    if batch_size % devices:
        raise Failed(
            _(
                "train.batch_size={batch_size} does not divide among {devices} devices: each device has to get the "
                "same number of examples of a batch. Set train.batch_size={sizes}, or ask for another number of GPUs.",
                batch_size=batch_size,
                devices=devices,
                sizes=divisible_sizes(batch_size, devices),
            )
        )


def make_strategy(devices: list[str]) -> Any:
    """What a model is built under: mirrored over several devices; TensorFlow's default on one."""
    import tensorflow as tf

    # One device has nothing to mirror, and the strategy's iterator costs a third of a small model's step.
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    on_cpu = devices[0].startswith("CPU")
    # The default reduction is NCCL's, which knows GPUs alone.
    reduction = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def can_compile(train: Train, devices: int) -> bool:
    """Whether a step is compiled with XLA: where the config wants it, one device runs it, and Keras does it."""
    # XLA compiles for one device: a mirrored step touches the variables of several and fails.
    if train.jit_compile and devices > 1:
        print(
            _("train.jit_compile is off: XLA cannot compile a step that runs on {devices} devices", devices=devices),
            flush=True,
        )
        return False
    if train.jit_compile and train.deterministic:
        print(_("train.jit_compile is off: Keras does not compile with XLA where train.deterministic=true"), flush=True)
        return False
    return train.jit_compile


def describe(device: str) -> str:
    """A device with the name of its model: `GPU:0 (NVIDIA H100)`."""
    import tensorflow as tf

    kind, index = device.split(":")
    if kind == "CPU":
        return device
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices(kind)[int(index)])
    return f"{device} ({details.get('device_name', 'unknown')})"
