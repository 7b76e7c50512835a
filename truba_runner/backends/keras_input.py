"""From what a job's `load_data` returned to what `fit` goes through: batches, class weights, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.keras_arrays import count_examples
from truba_runner.backends.keras_data import DataPlan
from truba_runner.backends.keras_devices import check_batch_size
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_py_dataset import PyDatasetPlan
from truba_runner.backends.keras_streams import StreamPlan, is_stream
from truba_runner.config import Train
from truba_runner.errors import Failed
from truba_runner.language import _

DEFAULT_BATCH_SIZE = 64


def global_batch(train: Train, devices: int) -> int:
    """How many examples all devices together go through in a step."""
    size = DEFAULT_BATCH_SIZE if train.batch_size is None else train.batch_size
    return size * devices if train.batch_scaling == "per_replica" else size


def make_plans(context: Context, splits: dict[str, Any], devices: int, team: Team | None = None) -> dict[str, Plan]:
    """A `DataPlan` or a `StreamPlan` for each split, class weights included. `devices` counts those of all nodes.

    Raises:
        truba_runner.errors.Failed: a split cannot be gone through as the config wants it.
    """
    train = context.experiment.train
    plans = {name: _plan(train, name, split, devices, team) for name, split in splits.items()}
    if train.class_weight is not None and "train" in plans:
        weights = class_weights(train.class_weight, splits["train"])
        plans["train"].then(lambda dataset: _weighted(dataset, weights))
        told = ", ".join(f"{label}: {weight:.4g}" for label, weight in weights.items())
        print(_("class weights: {weights}", weights=told), flush=True)
    return plans


def _plan(train: Train, name: str, split: Any, devices: int, team: Team | None) -> Plan:
    import keras

    batch_size = global_batch(train, devices)
    if train.batch_size is not None or not is_stream(split):
        check_batch_size(batch_size, devices)
    if is_stream(split):
        if team is not None:
            raise Failed(
                _(
                    "load_data returned no arrays for {name}, and several nodes divide arrays alone among them. "
                    "Return arrays, or set resources.nodes=1.",
                    name=name,
                )
            )
        kind = PyDatasetPlan if isinstance(split, keras.utils.PyDataset) else StreamPlan
        return kind(train, name, split, devices, batch_size)
    return DataPlan(
        split,
        examples=count_examples(name, split),
        batch_size=batch_size,
        devices=devices,
        seed=train.seed if name == "train" else None,
        steps=train.steps_per_epoch if name == "train" else None,
        team=team,
    )


def known_examples(splits: dict[str, Any]) -> dict[str, int]:
    """How many examples each split has, of those that say so."""
    return {name: count_examples(name, split) for name, split in splits.items() if not is_stream(split)}


def class_weights(wanted: Any, split: Any) -> dict[int, float]:
    """`train.class_weight` as a number for each class. balanced: each class weighs as much as every other in all.

    That is `examples / (classes * examples of the class)`, over the training labels alone.

    Raises:
        truba_runner.errors.Failed: it is neither, or the labels that it should follow from are not in memory.
    """
    import numpy as np

    if isinstance(wanted, Mapping):
        try:
            return {int(label): float(weight) for label, weight in wanted.items()}
        except (TypeError, ValueError) as error:
            raise Failed(
                _(
                    "train.class_weight={wanted}: {error}. Write it as {{0: 1.0, 1: 50.0}}.",
                    wanted=dict(wanted),
                    error=error,
                )
            ) from error
    if wanted != "balanced":
        raise Failed(
            _(
                "train.class_weight={wanted}: it is balanced, or a mapping of classes, as in {{0: 1.0, 1: 50.0}}.",
                wanted=wanted,
            )
        )
    if is_stream(split) or not hasattr(split[1], "shape"):
        raise Failed(
            _(
                "train.class_weight=balanced counts the training labels, and load_data returned no single array of "
                "them. Give the weights themselves: train.class_weight={0: 1.0, 1: 50.0}."
            )
        )
    labels = np.asarray(split[1])
    classes = labels.argmax(axis=-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.reshape(-1).astype(int)
    found, counts = np.unique(classes, return_counts=True)
    return {int(label): len(classes) / (len(found) * int(n)) for label, n in zip(found, counts, strict=True)}


def _weighted(dataset: Any, weights: Mapping[int, float]) -> Any:
    """Each example with the weight of its class; a class without one weighs 1."""
    import tensorflow as tf

    table = tf.constant([weights.get(label, 1.0) for label in range(max(weights) + 2)], tf.float32)

    def weigh(x: Any, y: Any, *weight: Any) -> Any:
        hot = y.shape.rank is not None and y.shape.rank > 1 and y.shape[-1] != 1
        label = tf.argmax(y, axis=-1) if hot else tf.reshape(tf.cast(y, tf.int64), [-1])
        # The table's last entry stands for all classes beyond it.
        by_class = tf.gather(table, tf.minimum(label, len(table) - 1))
        return x, y, by_class * tf.cast(weight[0], tf.float32) if weight else by_class

    return dataset.map(weigh, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
