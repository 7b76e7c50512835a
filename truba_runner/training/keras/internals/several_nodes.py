"""Replace functions of Keras and TensorFlow, in this process, that are wrong if several nodes train one network.

Keras 3 broke `fit` under TensorFlow's MultiWorkerMirroredStrategy. Checked with Keras 3.15.1 and TensorFlow 2.21.0;
versions other than 3.15 and 2.21 are refused. Where one of these is not replaced,
- `reduce_per_replica` takes the mean of a metric, a single number, over an axis that it does not have, and fails;
- `_initialize_local_devices` takes one CPU device only, so that the other logical CPUs train nothing;
- a dataset's `cardinality` counts the devices' shares, so that an epoch has too many steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.keras.internals.several_devices import KERAS

TENSORFLOW = "2.21"


def check_versions() -> None:
    """Check that the versions are those whose functions are known.

    Raises:
        truba_runner.errors.Failed: other versions are installed.
    """
    import keras
    import tensorflow as tf

    for name, needed, found in (("Keras", KERAS, keras.__version__), ("TensorFlow", TENSORFLOW, tf.__version__)):
        if not found.startswith(f"{needed}."):
            raise Failed(
                "{name} {found} is installed. Several nodes need Keras {keras} and TensorFlow {tensorflow}: Keras "
                "3 alone cannot train on several nodes, and truba_runner can replace the two functions that "
                "prevent it in these versions only. Install keras=={keras}.* and tensorflow=={tensorflow}.*, or "
                "set resources.nodes=1.",
                name=name,
                found=found,
                keras=KERAS,
                tensorflow=TENSORFLOW,
            )


def mend_trainer() -> None:
    """Replace the function of Keras' trainer that fails if values are on other nodes too."""
    from keras.src.backend.tensorflow import trainer

    original = trainer.reduce_per_replica

    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        """Reduce without an axis: Keras takes the mean over one, which a metric, a single number, does not have."""
        import tensorflow as tf

        if trainer._collective_all_reduce_multi_worker(strategy) and reduction in ("auto", "mean"):
            return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return original(values, strategy, reduction)

    trainer.reduce_per_replica = reduce_per_replica


@contextmanager
def all_logical_cpus(count: int) -> Iterator[None]:
    """Let TensorFlow's strategy, which takes all GPUs but one CPU device only, take `count` CPUs (0: no change)."""
    from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

    original = CollectiveAllReduceExtended._initialize_local_devices

    def all_of_them(self: Any, resolver: Any, worker: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker}/device:CPU:{index}" for index in range(count)), "CPU"

    if count:
        CollectiveAllReduceExtended._initialize_local_devices = all_of_them
    try:
        yield
    finally:
        CollectiveAllReduceExtended._initialize_local_devices = original


def count_steps(fed: Any, steps: int) -> Any:
    """Let a dataset of the devices' shares tell Keras its `steps`: TensorFlow counts shares."""
    fed.__class__ = type("Steps", (type(fed),), {"cardinality": steps})
    return fed
