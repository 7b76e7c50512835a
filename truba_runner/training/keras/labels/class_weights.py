"""Apply `train.class_weight`: weight each example, or each position of a mask or a text, by its class.

Keras' own argument takes anything with a last axis for one-hot, and supports one output. Here every value of the loss,
for an example or for a position, gets a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.elements import map_elements
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.batches.streams import is_stream
from truba_runner.training.keras.labels.labels import Labels, Weighing


def add_class_weights(context: Context, model: Any, splits: Mapping[str, Any], plan: Plan) -> None:
    """Multiply the weights of the training's batches by those of `train.class_weight`.

    Raises:
        truba_runner.errors.Failed: the setting does not fit the labels, or the labels have no classes.
    """
    wanted = context.experiment.train.class_weight
    if wanted is None:
        return
    element, split = plan.batches.element_spec, splits["train"]
    if not isinstance(element, tuple) or len(element) < 2:
        raise Failed("train.class_weight weights labels, but load_data returned only x for train. Leave it out.")
    arrays = None if is_stream(split) else split[1]
    weighings = {}
    for output, weights in _by_output(wanted, element[1], model).items():
        names = getattr(model, "output_names", None)
        predicted = _part(_outputs(model), output, names)
        labels = Labels(
            output,
            _part(element[1], output, names),
            _part(arrays, output, names),
            None if predicted is None else tuple(predicted.shape),
            _part(model.loss, output, names),
        )
        weighings[output] = Weighing(labels, weights)
        print(weighings[output].line(), flush=True)
    plan.then(lambda dataset: _weighted(dataset, weighings, getattr(model, "output_names", None)))


# -- outputs ---------------------------------------------------------------------------------------------------


def _by_output(wanted: Any, labels: Any, model: Any) -> dict[str, Any]:
    """Return the requested class weights by output; a single output has an empty name."""
    names = list(labels) if isinstance(labels, Mapping) else list(getattr(model, "output_names", None) or ())
    several = isinstance(labels, (Mapping, tuple))
    by_name = isinstance(wanted, Mapping) and bool(wanted) and not any(map(_is_number, wanted.values()))
    if not several:
        if by_name:
            raise Failed(
                "train.class_weight={wanted} is given by output, but there is only one output. Write it as "
                "{{0: 1.0, 1: 50.0}}.",
                wanted=dict(wanted),
            )
        return {"": wanted}
    if not by_name or not set(wanted) <= set(names):
        raise Failed(
            "train.class_weight={wanted}: the network has several outputs ({names}), so it must name the output, "
            "as in {{{first}: {{0: 1.0, 1: 50.0}}}} or {{{first}: balanced}}.",
            wanted=dict(wanted) if isinstance(wanted, Mapping) else wanted,
            names=", ".join(names),
            first=names[-1] if names else "NAME",
        )
    return {str(name): weights for name, weights in wanted.items()}


def _outputs(model: Any) -> Any:
    """Return the model's outputs, by name or in order; None: unknown before the network runs."""
    try:
        return model.output
    except (AttributeError, ValueError):
        # A Sequential that is built but was never called has `outputs` all the same.
        return getattr(model, "outputs", None) or None


def _is_number(value: Any) -> bool:
    # Any other word passes for a number here: `labels._given` refuses it.
    return not isinstance(value, Mapping) and value != "balanced"


def _part(structure: Any, output: str, names: Any) -> Any:
    """Return an output's part of a structure that is by name or in the outputs' order."""
    if isinstance(structure, Mapping):
        return structure.get(output) if output else next(iter(structure.values()))
    if isinstance(structure, (list, tuple)):
        index = list(names).index(output) if output else 0
        return structure[index] if index < len(structure) else None
    return structure


# -- batches ---------------------------------------------------------------------------------------------------


def _weighted(dataset: Any, weighings: Mapping[str, Weighing], names: Any) -> Any:
    import tensorflow as tf

    def weigh(element: Any) -> Any:
        x, y, *given = element
        own = given[0] if given else None
        if "" in weighings:
            weights = weighings[""].of_batch(_part(y, "", names))
            return x, y, _times(weights, _part(own, "", names))
        outputs = list(y) if isinstance(y, Mapping) else list(names)
        made = {name: _of_output(weighings.get(name), name, y, own, names) for name in outputs}
        return x, y, made if isinstance(y, Mapping) else tuple(made.values())

    return map_elements(dataset, weigh, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(
        tf.data.AUTOTUNE
    )


def _of_output(weighing: Weighing | None, name: str, y: Any, own: Any, names: Any) -> Any:
    import tensorflow as tf

    label, given = _part(y, name, names), _part(own, name, names)
    # Keras takes weights for all outputs, or for none.
    weights = tf.ones(tf.shape(label)[:1]) if weighing is None else weighing.of_batch(label)
    return _times(weights, given)


def _times(weights: Any, given: Any) -> Any:
    """Multiply class weights by the data's own weights, of examples or of the same positions."""
    import tensorflow as tf

    if given is None:
        return weights
    given = tf.cast(given, tf.float32)
    if given.shape.rank == 2 and given.shape[-1] == 1 and weights.shape.rank == 1:
        given = tf.squeeze(given, -1)
    for _axis in range(weights.shape.rank - given.shape.rank):
        given = given[..., None]
    for _axis in range(given.shape.rank - weights.shape.rank):
        weights = weights[..., None]
    return weights * given
