"""Check that a training's batches fit the network's inputs, where Keras' own messages would mislead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.older_python import zip_equal
from truba_runner.training.keras.batches.elements import x_of
from truba_runner.training.keras.batches.plan import Plan


def check_fit(model: Any, plan: Plan) -> None:
    """Refuse data that Keras would silently reshape, or refuse with an unclear message.

    Raises:
        truba_runner.errors.Failed: single examples are taken for batches, or batches for examples; or x is ragged.
    """
    import tensorflow as tf

    for spec, wanted in _pairs(x_of(plan.batches.element_spec), model):
        shape, own = tuple(spec.shape), tuple(wanted.shape)
        if isinstance(spec, tf.RaggedTensorSpec) and not getattr(wanted, "ragged", False):
            raise Failed(
                "load_data returned ragged x for train, but the network's input takes rows of one length. Return "
                "x.to_tensor(), which pads with 0 (an Embedding with mask_zero=True ignores it), or make the input "
                "with keras.Input(…, ragged=True) if all layers after it take ragged tensors."
            )
        if _same(shape[1:], own[1:]):
            continue
        if _same(shape, own[1:]):
            raise Failed(
                "load_data returned for train elements whose x has the shape {shape}, but the network takes "
                "{wanted} of each example: they are single examples, not batches. Set train.batch_size, for "
                "example train.batch_size=64, or return batches, for a Dataset with .batch(64).",
                shape=shape,
                wanted=own[1:],
            )
        # Keras itself removes a superfluous last axis of length 1.
        if _same(shape[2:], own[1:]) and not (shape[-1] == 1 and _same(shape[1:-1], own[1:])):
            raise Failed(
                "load_data returned for train elements whose x has the shape {shape}, and train.batch_size made "
                "batches of them; but the network takes {wanted} of each example: they are batches already. Set "
                "train.batch_size=null.",
                shape=shape[1:],
                wanted=own[1:],
            )


def _pairs(x: Any, model: Any) -> list[tuple[Any, Any]]:
    """Return pairs of an x and the model's input that it is for, where both are known."""
    inputs = list(getattr(model, "inputs", None) or ())
    if isinstance(x, Mapping):
        return [(x[one.name], one) for one in inputs if one.name in x]
    parts = list(x) if isinstance(x, (list, tuple)) else [x]
    return list(zip_equal(parts, inputs)) if len(parts) == len(inputs) else []


def _same(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        one is None or other is None or one == other for one, other in zip_equal(shape, wanted)
    )
