"""Pick a Keras job's devices, make the strategy, and set what depends on the number of devices."""

from __future__ import annotations

from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.log import info
from truba_runner.rules.training import divisible_sizes
from truba_runner.training.keras.internals.private_names import copies_of, layers_of, seed_generators
from truba_runner.training.keras.internals.several_devices import mend_keras
from truba_runner.training.missing_gpus import tell_of_missing_gpus

# Distance between two devices' seeds: a prime, far from the numbers that people choose as seeds of their layers.
_APART = 715_827_881


def pick_devices(gpus_asked: int) -> list[str]:
    """Return all GPUs that TensorFlow sees, as `GPU:0`; without any, as many logical CPU devices as requested GPUs.

    Raises:
        truba_runner.errors.Failed: GPUs were requested and exist, but TensorFlow cannot use them.
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
                "TensorFlow was in use before its {count} devices could be set up. Move the TensorFlow code at the "
                "top level of the job's module into build_model or load_data.",
                count=count,
            ) from error
    return [f"CPU:{index}" for index in range(count)]


def convolve() -> None:
    """Run a small convolution on each device that has one: on a broken node CUDA may work and cuDNN not.

    Raises:
        RuntimeError: a result is wrong. TensorFlow's own errors are passed on.
    """
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU"):
        with tf.device(device.name):
            summed = tf.nn.conv2d(tf.ones((1, 8, 8, 3)), tf.ones((3, 3, 3, 4)), 1, "VALID")
        if set(summed.numpy().flat) != {27.0}:
            raise RuntimeError(f"{device.name}: {summed.numpy().flat[0]}")


def check_batch_size(batch_size: int, devices: int) -> None:
    """Refuse a batch size that does not divide among the devices.

    Raises:
        truba_runner.errors.Failed: the batch size does not divide.
    """
    if batch_size % devices:
        raise Failed(
            "train.batch_size={batch_size} cannot be divided equally among {devices} devices: each device has to "
            "get the same number of examples of a batch. Set train.batch_size={sizes}, or request another number "
            "of GPUs.",
            batch_size=batch_size,
            devices=devices,
            sizes=divisible_sizes(batch_size, devices),
        )


def make_strategy(devices: list[str]) -> Any:
    """Return the strategy to build a model under: mirrored over several devices; TensorFlow's default on one."""
    import tensorflow as tf

    # One device has nothing to mirror, and a mirrored iterator costs a third of a small model's step.
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    mend_keras()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=_reduction(len(devices)))


def _reduction(devices: int) -> Any:
    """Return how gradients are summed over devices: by copies and sums, in a fixed order, equal on GPUs and CPUs.

    TensorFlow's default, a collective, fails if an execution has several steps: "must feed a value".
    """
    import tensorflow as tf

    # TensorFlow 2.21's hierarchical reduction has two halves, and omits the last of an odd number of devices.
    if devices % 2:
        return tf.distribute.ReductionToOneDevice()
    # Unpacked, a tensor is sent once it is known, through another device than the last; a pack takes only one dtype.
    return tf.distribute.HierarchicalCopyAllReduce(num_packs=0)


def draw_apart(model: Any, devices: int, first: int = 0) -> None:
    """Give each device its own random numbers: Keras starts all from one seed, so that dropout would be the same.

    The first device keeps the seed, as if it were alone. `first`: index of this process's first device among all.
    """
    if devices == 1:
        return
    states = [copies_of(one.state) for layer in layers_of(model) for one in seed_generators(layer)]
    for copies in {id(copies[0]): copies for copies in states}.values():
        for index, copy in enumerate(copies, start=first):
            copy.assign_add([_APART * index, 0])


def can_compile(train: Train, devices: int) -> bool:
    """Return whether to compile a step with XLA: the config asks for it, one device runs it, and Keras supports it."""
    # XLA compiles for one device: a mirrored step touches the variables of several and fails.
    if train.jit_compile and devices > 1:
        info("train.jit_compile is off: XLA cannot compile a step that runs on {devices} devices", devices=devices)
        return False
    if train.jit_compile and train.deterministic:
        info("train.jit_compile is off: Keras does not compile with XLA where train.deterministic=true")
        return False
    return train.jit_compile


def describe(device: str) -> str:
    """Return a device with its model's name: `GPU:0 (NVIDIA H100)`."""
    import tensorflow as tf

    kind, index = device.split(":")
    if kind == "CPU":
        return device
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices(kind)[int(index)])
    return f"{device} ({details.get('device_name', 'unknown')})"
