"""Inspect and change the elements of a stream: their shapes and types, and whether they are batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Optional

from truba_runner.errors import Failed
from truba_runner.older_python import zip_equal
from truba_runner.training.keras.internals.private_names import inputs_of

# Elements read to learn their shapes, as many as Keras reads: an axis on which they differ has no fixed length.
LOOKED_AT = 2
Shape = tuple[Optional[int], ...]


def map_elements(dataset: Any, change: Callable[[Any], Any], **settings: Any) -> Any:
    """Apply `change` to each element as a whole: a tuple, or x alone."""
    if isinstance(dataset.element_spec, tuple):
        return dataset.map(lambda *parts: change(parts), **settings)
    return dataset.map(change, **settings)


def with_cardinality(dataset: Any, count: Callable[[], int]) -> Any:
    """Return the dataset with `count()` as its cardinality, which Keras asks for at the beginning of each loop."""
    import tensorflow as tf

    counted = dataset.with_options(tf.data.Options())
    counted.__class__ = type("Counted", (type(counted),), {"cardinality": lambda self: tf.constant(count(), tf.int64)})
    return counted


def size_of(element: Any) -> Any:
    """Return a batch's number of examples as a tensor."""
    import tensorflow as tf

    first = tf.nest.flatten(element)[0]
    if isinstance(first, tf.RaggedTensor):
        return first.nrows(out_type=tf.int32)
    return tf.cast(first.dense_shape[0], tf.int32) if isinstance(first, tf.SparseTensor) else tf.shape(first)[0]


def first_of(element: Any, count: Any) -> Any:
    """Return the first `count` examples of a batch."""
    import tensorflow as tf

    def cut(part: Any) -> Any:
        if not isinstance(part, tf.SparseTensor):
            return part[:count]
        shape = tf.concat([[tf.cast(count, tf.int64)], part.dense_shape[1:]], 0)
        return tf.sparse.slice(part, tf.zeros_like(shape), shape)

    return tf.nest.map_structure(cut, element)


def owned(dataset: Any) -> Any:
    """Return the dataset with copies of its elements, which TensorFlow may write into.

    What a Python function returns is the user's own array. If a step takes a slice of it, as on several devices,
    TensorFlow 2.21 takes the slice for its own, and writes the next operation's results there.
    """
    import tensorflow as tf

    def copied(element: Any) -> Any:
        return tf.nest.map_structure(lambda part: tf.raw_ops.DeepCopy(x=part), element, expand_composites=True)

    return map_elements(dataset, copied)


def zeros(spec: Any, examples: int) -> Any:
    """Return a batch of this many examples, of zeros or empty text; axes of unknown length get length 1."""
    import tensorflow as tf

    def part(one: Any) -> Any:
        first, *others = tuple(one.shape)
        dense = tf.zeros([first or examples, *(size or 1 for size in others)], one.dtype)
        if isinstance(one, tf.RaggedTensorSpec):
            return tf.RaggedTensor.from_tensor(
                dense, ragged_rank=one.ragged_rank, row_splits_dtype=one.row_splits_dtype
            )
        return tf.sparse.from_dense(dense) if isinstance(one, tf.SparseTensorSpec) else dense

    return tf.nest.map_structure(part, spec)


class Leaving:
    """A counter of batches that leave a pipeline, which runs ahead of the training and never behind it."""

    def __init__(self) -> None:
        """Start at 0."""
        import tensorflow as tf

        with tf.device("CPU:0"):
            self._count = tf.Variable(0, dtype=tf.int64, trainable=False)

    def begin(self, count: int) -> None:
        """Set how many batches have left already."""
        self._count.assign(count)

    def trained(self, counted: int) -> int:
        """Return how many of `counted` steps had a batch: fewer batches have left only if the pipeline has ended."""
        return min(counted, int(self._count.numpy()))

    def through(self, dataset: Any) -> Any:
        """Return the dataset with its batches counted."""
        import tensorflow as tf

        def count(element: Any) -> Any:
            with tf.control_dependencies([self._count.assign_add(1)]):
                return tf.nest.map_structure(tf.identity, element)

        return map_elements(dataset, count)


# -- what Python yields ----------------------------------------------------------------------------------------


def element_of(name: str, yielded: Any) -> Any:
    """Convert what a generator or a PyDataset yielded to tensors or arrays: a tuple of x, y and a weight, or x alone.

    Raises:
        truba_runner.errors.Failed: it yielded something else.
    """
    import numpy as np
    import tensorflow as tf

    x_alone = isinstance(yielded, dict) or hasattr(yielded, "shape")
    if not x_alone and (not isinstance(yielded, tuple) or not 1 <= len(yielded) <= 3):
        raise Failed(
            "The object that load_data returned for {name} yields a {kind}; it has to yield tuples (x, y) or (x, "
            "y, weight), or x alone if there are no labels. Return a tf.data.Dataset, a keras.utils.PyDataset, or "
            "a function that returns a generator or a Dataset.",
            name=name,
            kind=type(yielded).__name__,
        )

    def part(value: Any) -> Any:
        if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)):
            return value
        array = sparse_tensor(value) if hasattr(value, "tocoo") else np.asarray(value)
        # Keras computes with float32, but Python's numbers are float64.
        return array.astype(np.float32) if array.dtype == np.float64 else array

    return tf.nest.map_structure(part, without_nones(yielded))


def without_nones(element: Any) -> Any:
    """Turn `(x, None)` into x, and `(x, y, None)` into `(x, y)`, as Keras does."""
    if not isinstance(element, tuple):
        return element
    kept = until_none(element)
    return kept[0] if len(kept) == 1 and not isinstance(kept[0], (tuple, list)) else kept


def until_none(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave out the parts at the end that are None, but never the first part."""
    while len(parts) > 1 and parts[-1] is None:
        parts = parts[:-1]
    return parts


def x_of(element: Any) -> Any:
    """Return the inputs of an element: its first part, or x alone."""
    return element[0] if isinstance(element, tuple) else element


def sparse_tensor(matrix: Any) -> Any:
    """Convert a SciPy matrix to a tf.SparseTensor."""
    import numpy as np
    import tensorflow as tf

    ordered = matrix.tocsr().sorted_indices().tocoo()
    values = ordered.data.astype(np.float32) if ordered.data.dtype == np.float64 else ordered.data
    return tf.SparseTensor(np.stack([ordered.row, ordered.col], 1).astype(np.int64), values, ordered.shape)


def signature_of(elements: list[Any], batched: bool) -> Any:
    """Return the shapes and types that all elements have in common; batches may have any number of examples."""
    import tensorflow as tf

    def spec(*values: Any) -> Any:
        shape = common_shape([tuple(value.shape) for value in values])
        if batched and shape:
            shape = (None, *shape[1:])
        first = values[0]
        if isinstance(first, tf.RaggedTensor):
            return tf.RaggedTensorSpec(shape, first.dtype, first.ragged_rank, first.row_splits.dtype)
        if isinstance(first, tf.SparseTensor):
            return tf.SparseTensorSpec(shape, first.dtype)
        return tf.TensorSpec(shape, tf.as_dtype(first.dtype))

    return tf.nest.map_structure(spec, *elements)


def common_shape(shapes: list[tuple[Any, ...]]) -> Shape:
    """Merge shapes of one rank, with None for axes on which they differ."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip_equal(*shapes))


def looked_at(elements: Iterable[Any]) -> list[Any]:
    """Return the first few elements."""
    return list(itertools.islice(elements, LOOKED_AT))


# -- Datasets --------------------------------------------------------------------------------------------------


def with_ranks(name: str, dataset: Any) -> Any:
    """Set the shapes that a Python function in the Dataset left unknown to those of its first elements."""
    import tensorflow as tf

    if all(spec.shape.rank is not None for spec in tf.nest.flatten(dataset.element_spec)):
        return dataset
    elements = looked_at(dataset)
    if not elements:
        raise Failed("The Dataset that load_data returned for {name} has no elements.", name=name)
    shapes = [
        common_shape([tuple(part.shape) for part in parts]) for parts in zip_equal(*map(tf.nest.flatten, elements))
    ]
    if made_batches(dataset) is not False and same_length([tuple(part.shape) for part in tf.nest.flatten(elements[0])]):
        shapes = [(None, *shape[1:]) for shape in shapes]

    def shaped(element: Any) -> Any:
        parts = tf.nest.flatten(element)
        known = [
            tf.ensure_shape(part, shape) if part.shape.rank is None else part
            for part, shape in zip_equal(parts, shapes)
        ]
        return tf.nest.pack_sequence_as(element, known)

    return map_elements(dataset, shaped)


def is_batched(made: bool | None, shapes: list[tuple[Any, ...]], says_examples: bool) -> bool:
    """Return whether elements are batches, by the shapes of their parts and by what `made_batches` returned (`made`).

    `says_examples`: train.batch_size is set, so they should be single examples. Shapes can only rule batches out: x and
    y of a batch are equally long, but so are those of one example that maps an image to an image.
    """
    if made or not same_length(shapes):
        return bool(made)
    open_ended = made is None and all(shape[0] is None for shape in shapes)
    return open_ended or not says_examples


def made_batches(dataset: Any) -> bool | None:
    """Return whether the last batching or unbatching operation of a Dataset made batches; None: unknown.

    It is known by the names of TensorFlow's private classes (checked with 2.21.0).
    """
    name = type(dataset).__name__
    if "Unbatch" in name:
        return False
    if "Batch" in name:
        return True
    inputs = inputs_of(dataset)
    if not inputs:
        return False if any(kind in name for kind in ("TensorSlice", "Range", "TFRecord", "TextLine")) else None
    if any(kind in name for kind in ("FlatMap", "Interleave", "Window")):
        return None
    answers = {made_batches(one) for one in inputs}
    return answers.pop() if len(answers) == 1 else None


def same_length(shapes: list[tuple[Any, ...]]) -> bool:
    """Return whether these can be the shapes of a batch, whose x and y are equally long."""
    return all(shapes) and len({shape[0] for shape in shapes}) == 1
