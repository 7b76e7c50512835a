"""Make a plan of batches for each split that a job's `load_data` returned."""

from __future__ import annotations

from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.arrays import count_examples
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.batches.py_dataset import PyDatasetPlan
from truba_runner.training.keras.batches.splits import DataPlan
from truba_runner.training.keras.batches.streams import StreamPlan, is_stream
from truba_runner.training.keras.devices.devices import check_batch_size
from truba_runner.training.keras.devices.team import Team

DEFAULT_BATCH_SIZE = 64


def global_batch(train: Train, devices: int) -> int:
    """Return the number of examples in a step, over all devices."""
    size = DEFAULT_BATCH_SIZE if train.batch_size is None else train.batch_size
    return size * devices if train.batch_scaling == "per_replica" else size


def make_plans(context: Context, splits: dict[str, Any], devices: int, team: Team | None = None) -> dict[str, Plan]:
    """Return a plan for each split. `devices` counts those of all nodes.

    Raises:
        truba_runner.errors.Failed: a split cannot be batched as the config asks.
    """
    train = context.experiment.train
    return {name: _plan(train, name, split, devices, team) for name, split in splits.items()}


def _plan(train: Train, name: str, split: Any, devices: int, team: Team | None) -> Plan:
    import keras

    batch_size = global_batch(train, devices)
    if train.batch_size is not None or not is_stream(split):
        check_batch_size(batch_size, devices)
    if is_stream(split):
        if team is not None:
            raise Failed(
                "load_data returned no arrays for {name}, but only arrays can be divided among several nodes. "
                "Return arrays, or set resources.nodes=1.",
                name=name,
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
    """Return the number of examples of each split that consists of arrays."""
    return {name: count_examples(name, split) for name, split in splits.items() if not is_stream(split)}
