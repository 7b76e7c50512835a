"""Apply a job's preprocessing layer, ahead of the training on the CPU or inside the network.

Both train the same weights, and both save a model that takes raw inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.errors import Failed
from truba_runner.log import info
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import accepted, call
from truba_runner.training.keras.batches.elements import map_elements, x_of
from truba_runner.training.keras.batches.streams import is_stream


@dataclass(frozen=True)
class Preprocessing:
    """The layer that the job's `build_preprocessing` returned, and whether it is inside the network."""

    layer: Any
    inside: bool
    # The raw inputs of a batch: a tf.TensorSpec, or a structure of them.
    signature: Any

    def ahead(self, dataset: Any) -> Any:
        """Return the dataset with its inputs preprocessed, a few batches in advance."""
        import tensorflow as tf

        def prepared(element: Any) -> Any:
            return (self.layer(element[0]), *element[1:]) if isinstance(element, tuple) else self.layer(element)

        mapped = map_elements(dataset, prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return mapped.prefetch(tf.data.AUTOTUNE)

    def joined(self, model: Any) -> Any:
        """Return a model of the layer and the network, which takes raw inputs and shares the network's weights."""
        import keras
        import tensorflow as tf

        raw = tf.nest.map_structure(lambda spec: keras.Input(spec.shape[1:], dtype=spec.dtype.name), self.signature)
        return keras.Model(raw, model(self.layer(raw)), name=model.name)


def add_preprocessing(
    context: Context, splits: Mapping[str, Any], plans: Mapping[str, Any], devices: int
) -> Preprocessing | None:
    """Return the job's preprocessing, None without one; outside the network, apply it to the plans' batches.

    Raises:
        truba_runner.errors.Failed: `build_preprocessing` returned something other than a layer.
    """
    import keras

    function = getattr(context.job, "build_preprocessing", None)
    if function is None:
        return None
    options = accepted(function, context.experiment.job.options)
    inputs = _inputs(splits["train"], plans["train"])
    layer = call(context.job, "build_preprocessing", "job.options", options, inputs=inputs)
    if not isinstance(layer, keras.Layer):
        raise Failed(
            "build_preprocessing in {file} returned a {kind}, not a keras.Layer.",
            file=context.job.__file__,
            kind=type(layer).__name__,
        )
    signature = x_of(plans["train"].batches.element_spec)
    inside = _can_be_inside(context.experiment.data.preprocessing == "model", signature, devices)
    preprocessing = Preprocessing(layer, inside, signature)
    if not inside:
        for plan in plans.values():
            plan.then(preprocessing.ahead)
    return preprocessing


def takes_text(signature: Any) -> bool:
    """Return whether any of the inputs is text."""
    import tensorflow as tf

    return any(spec.dtype == tf.string for spec in tf.nest.flatten(signature))


def _can_be_inside(wanted: bool, signature: Any, devices: int) -> bool:
    # Before the first step Keras takes the mean of the devices' inputs, which text does not have.
    if wanted and devices > 1 and takes_text(signature):
        info(
            "data.preprocessing is set to async: Keras cannot train a network that takes text on {devices} "
            "devices. The trained weights are the same",
            devices=devices,
        )
        return False
    return wanted


def _inputs(split: Any, plan: Any) -> Any:
    """Return the training inputs for the layer to adapt to: arrays as they are, or a Dataset of a stream's batches."""
    return map_elements(plan.batches, x_of) if is_stream(split) else split[0]
