"""The devices that a Keras job trains on, and what follows from how many there are."""

from __future__ import annotations

from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.rules.training import divisible_sizes
from truba_runner.training.keras.devices.replicas import mend_keras
from truba_runner.training.missing_gpus import tell_of_missing_gpus

# Between the seeds of two devices: a prime, and far from how people number the seeds of their layers.
_APART = 715_827_881


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
    mend_keras()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=_reduction(len(devices)))


def _reduction(devices: int) -> Any:
    """How the devices' gradients are added up: copies and sums, the same on GPUs and on CPUs, in a fixed order.

    TensorFlow's default, a collective, fails in Keras' loop of several steps an execution: "must feed a value".
    """
    import tensorflow as tf

    # TensorFlow 2.21's hierarchy is of two halves, and leaves out the last of an odd number of devices.
    if devices % 2:
        return tf.distribute.ReductionToOneDevice()
    # Unpacked, each tensor is on its way as soon as it is known, by another device than the last; and packs are of one
    # dtype alone.
    return tf.distribute.HierarchicalCopyAllReduce(num_packs=0)


def draw_apart(model: Any, devices: int, first: int = 0) -> None:
    """Gives each device random numbers of its own: Keras starts all from one seed, so that dropout would be the same.

    The first device keeps the seed, as if it were alone. `first`: which of all devices this process's first one is.
    """
    if devices == 1:
        return
    generators = [one for layer in model._flatten_layers() for one in layer._seed_generators]
    states = [getattr(one.state.value, "values", (one.state.value,)) for one in generators]
    for copies in {id(copies[0]): copies for copies in states}.values():
        for index, copy in enumerate(copies, start=first):
            copy.assign_add([_APART * index, 0])


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
