"""Check the batches of streams, divide them among devices, and prefetch them."""

from __future__ import annotations

from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.training.keras.batches.elements import first_of, map_elements, size_of


def check_batching(name: str, batched: bool, train: Train) -> None:
    """Refuse batches where train.batch_size is set, and single examples where it is not.

    Raises:
        truba_runner.errors.Failed: batches, though train.batch_size or train.batch_scaling is set; or no batches.
    """
    if batched and (train.batch_size is not None or train.batch_scaling != "global"):
        raise Failed(
            "load_data returned batches for {name}, whose size load_data has set: train.batch_size={batch_size} "
            "and train.batch_scaling={batch_scaling} are for single examples. Set train.batch_size=null and "
            "train.batch_scaling=global, or return single examples.",
            name=name,
            batch_size=train.batch_size,
            batch_scaling=train.batch_scaling,
        )
    if not batched and train.batch_size is None:
        raise Failed(
            "load_data returned single examples for {name}, not batches. Set train.batch_size, for example "
            "train.batch_size=64, or return batches, for a Dataset with .batch(64).",
            name=name,
        )


def trimmed(dataset: Any, devices: int) -> Any:
    """Drop the last examples of batches that do not divide among the devices; `DataPlan` says why."""

    def trim(element: Any) -> Any:
        return first_of(element, size_of(element) - size_of(element) % devices)

    def is_there(*parts: Any) -> Any:
        return size_of(parts) > 0

    return map_elements(dataset, trim).filter(is_there)


def evened(name: str, dataset: Any, devices: int) -> Any:
    """Shrink all batches of an evaluation, which drops no examples, if the first does not divide among the devices.

    Raises:
        truba_runner.errors.Failed: the first batch has fewer examples than there are devices.
    """
    size = next((int(size_of(first)) for first in dataset), 0)
    if size < devices:
        raise Failed(
            "{devices} devices need at least {devices} examples in the first batch of {name}.",
            devices=devices,
            name=name,
        )
    return dataset.rebatch(size - size % devices) if size % devices else dataset


def fed_whole(dataset: Any) -> Any:
    """Prefetch batches. One process feeds every device: divide batches among them, not files."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
