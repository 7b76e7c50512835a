"""Check that the labels of one output have classes, and weight each value of the output's loss by its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.training.keras.internals.private_names import wrapped_loss

# The length of an axis of unknown length when a loss is tried.
_SOME = 3
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Labels:
    """The labels of one output, with its predictions' shape and its loss."""

    # The output's name; empty if there is only one.
    output: str
    # A tf.TensorSpec with the batch axis.
    spec: Any
    # All labels, if they are in memory.
    array: Any
    # The shape of the predictions, with the batch axis; None: unknown before the network runs.
    predicted: tuple[int | None, ...] | None
    loss: Any

    @property
    def of_output(self) -> str:
        """The output for messages: ` of kind`, or nothing."""
        return _(" of {output}", output=self.output) if self.output else ""


class Weighing:
    """The weights for the values of an output's loss."""

    def __init__(self, labels: Labels, wanted: Any) -> None:
        """`wanted`: `balanced`, or a mapping of classes to weights."""
        import tensorflow as tf

        self._labels = labels
        if not isinstance(labels.spec, tf.TensorSpec) or labels.spec.dtype == tf.string:
            raise Failed(
                "train.class_weight: the labels{output} are ragged, sparse or text, and have no classes that are "
                "numbers. Return integers, 0 for the first class.",
                output=labels.of_output,
            )
        # Rank of the loss's values: 1 for examples, more for positions in them.
        self.rank = self._rank_of_values()
        self._hot = self.rank < labels.spec.shape.rank and labels.spec.shape[-1] != 1
        classes = None if labels.array is None else self._checked(self._classes_in_memory())
        self.weights = _balanced(labels, classes) if wanted == "balanced" else _given(wanted)

    def line(self) -> str:
        """Return a line for the log."""
        weights = ", ".join(f"{label}: {weight:.4g}" for label, weight in self.weights.items())
        return _("class weights{output}: {weights}", output=self._labels.of_output, weights=weights)

    def of_batch(self, y: Any) -> Any:
        """Return the weights of a batch's labels, float32; a class without a weight gets 1, as in Keras."""
        import tensorflow as tf

        first, last = min(self.weights), max(self.weights)
        table = tf.constant([*(self.weights.get(label, 1.0) for label in range(first, last + 1)), 1.0], tf.float32)
        if self._hot:
            with tf.control_dependencies(self._asserted(y)):
                label = tf.argmax(tf.cast(y, tf.float32), axis=-1)
        else:
            label = tf.cast(tf.round(y) if y.dtype.is_floating else y, tf.int64)
            label = tf.squeeze(label, -1) if self.rank < y.shape.rank else label
        # The table's last entry is for all classes that are not in it.
        known = (label >= first) & (label <= last)
        return tf.gather(table, tf.where(known, label - first, last - first + 1))

    def _asserted(self, y: Any) -> list[Any]:
        import tensorflow as tf

        if self._labels.array is not None:
            return []
        total = tf.reduce_sum(tf.cast(y, tf.float32), axis=-1)
        return [tf.debugging.assert_near(total, 1.0, atol=_TOLERANCE, message=self._not_one_hot())]

    def _rank_of_values(self) -> int:
        """Return the rank of the loss's values by trying the loss; without the predictions' shape, by its name."""
        import numpy as np

        labels = self._labels
        if labels.spec.shape.rank is None:
            raise Failed("train.class_weight: the shape of the labels is not known. Set it with tf.ensure_shape.")
        own = tuple(labels.spec.shape)
        if labels.predicted is None or labels.loss is None:
            sparse = "sparse" in str(getattr(labels.loss, "name", labels.loss)).lower()
            return len(own) - 1 if len(own) > 1 and (own[-1] == 1 or not sparse) else len(own)
        y, predicted = ([size or _SOME for size in shape] for shape in (own, labels.predicted))
        y[0] = predicted[0] = 2
        values = _values(labels.loss, np.zeros(y, "float32"), np.zeros(predicted, "float32"))
        shape = list(values.shape)
        if shape not in (y, y[:-1]) or not shape:
            raise Failed(
                "train.class_weight: for labels{output} of shape {y} and predictions of shape {predicted} the loss "
                "gives values of shape {values}, and there is no weight for each. Give weights of that shape "
                "yourself, as (x, y, sample_weight), and leave train.class_weight out.",
                output=labels.of_output,
                y=tuple(labels.spec.shape),
                predicted=labels.predicted,
                values=("batch", *shape[1:]) if shape else (),
            )
        return len(shape)

    def _classes_in_memory(self) -> Any:
        import numpy as np

        array = np.asarray(self._labels.array)
        if not self._hot:
            return array[..., 0] if self.rank < array.ndim else array
        # The last axis may not be one of classes: labels can be several tags, or a mask without a channel axis.
        totals = array.astype(np.float64).sum(axis=-1)
        largest = array == array.max(axis=-1, keepdims=True)
        if (array < 0).any() or (abs(totals - 1) > _TOLERANCE).any() or (largest.sum(axis=-1) != 1).any():
            raise Failed(self._not_one_hot())
        return array.argmax(axis=-1)

    def _not_one_hot(self) -> str:
        return _(
            "train.class_weight: the labels{output} of shape {shape} are not one-hot: each of them has to have one 1 "
            "along the last axis, and some have several or none. Several tags at once, or a mask whose last axis is no "
            "class, have no class to weigh: give weights yourself, as (x, y, sample_weight). A mask of 0 and 1 for a "
            "network with one output a pixel needs a last axis of 1: y[..., None].",
            output=self._labels.of_output,
            shape=tuple(self._labels.spec.shape),
        )

    def _checked(self, classes: Any) -> Any:
        """Check the classes, and return them without the class that the loss ignores."""
        import numpy as np

        labels = self._labels
        values = np.unique(np.asarray(classes, np.float64))
        if not np.array_equal(values, np.round(values)):
            raise Failed(
                "train.class_weight: the labels{output} are no classes: {value:.4g} is among them. For numbers that "
                "are to be predicted give weights yourself, as (x, y, sample_weight).",
                output=labels.of_output,
                value=float(values[values != np.round(values)][0]),
            )
        ignored = getattr(labels.loss, "ignore_class", None)
        sparse = not self._hot and labels.predicted is not None and (labels.predicted[-1] or 0) > 1
        limit = labels.predicted[-1] if sparse and labels.predicted else np.inf
        wrong = [int(one) for one in values if not 0 <= one < limit and one != ignored]
        if wrong:
            raise Failed(
                "train.class_weight: the labels{output} have {value}, which is not a class of this network. If it "
                "marks missing labels, set train.loss={{class_name: SparseCategoricalCrossentropy, config: "
                "{{ignore_class: {value}}}}}.",
                output=labels.of_output,
                value=wrong[0],
            )
        whole = np.asarray(classes).astype(np.int64).reshape(-1)
        return whole if ignored is None else whole[whole != ignored]


def _values(loss: Any, y: Any, predicted: Any) -> Any:
    """Return a loss's values before their mean is taken."""
    import keras

    made = keras.losses.get(loss)
    wrapped = made if isinstance(made, keras.losses.Loss) else wrapped_loss(made)
    return wrapped.call(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(predicted))


def _given(wanted: Any) -> dict[int, float]:
    if not isinstance(wanted, Mapping) or not wanted:
        raise Failed(
            "train.class_weight={wanted}: it must be balanced, or weights by class, as in {{0: 1.0, 1: 50.0}}.",
            wanted=wanted,
        )
    try:
        return {int(label): float(weight) for label, weight in wanted.items()}
    except (TypeError, ValueError) as error:
        raise Failed(
            "train.class_weight={wanted}: {error}. Write it as {{0: 1.0, 1: 50.0}}.", wanted=dict(wanted), error=error
        ) from error


def _balanced(labels: Labels, classes: Any) -> dict[int, float]:
    """Weight classes so that their totals are equal in training: `labels / (classes * labels of the class)`."""
    import numpy as np

    if classes is None:
        raise Failed(
            "train.class_weight=balanced counts the training labels, and load_data returned no single array of them. "
            "Give the weights themselves: train.class_weight={0: 1.0, 1: 50.0}."
        )
    found, counts = np.unique(classes, return_counts=True)
    return {int(label): len(classes) / (len(found) * int(n)) for label, n in zip_equal(found, counts)}
