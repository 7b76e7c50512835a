"""Convert the arrays of a split for TensorFlow: NumPy, pandas, SciPy, ragged, sparse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.keras.batches.elements import until_none

_PARTS = ("x", "y", "sample_weight")
# NumPy's dtype kinds of numbers, booleans and text, and of the dtypes that machine learning has added (bfloat16).
_KINDS = "biufcSUV"


def as_arrays(name: str, split: Any, floats: str) -> Any:
    """Convert `(x,)`, `(x, y)` or `(x, y, sample_weight)` to arrays that TensorFlow takes.

    float64 becomes `floats`, as Keras does with arrays passed to `fit`.

    Raises:
        truba_runner.errors.Failed: a part is something that no network can take.
    """
    kept = until_none(split)
    if any(part is None for part in kept):
        raise Failed(
            "load_data returned None among the parts of {name}. They must be (x, y), (x, y, sample_weight), or "
            "(x,) if there are no labels.",
            name=name,
        )
    return tuple(_part(f"{name}: {part}", value, floats) for part, value in zip(_PARTS, kept))


def count_examples(name: str, split: Any) -> int:
    """Return the number of examples of a split.

    Raises:
        truba_runner.errors.Failed: there are none, or the arrays have different numbers.
    """
    import tensorflow as tf

    counts = {int(array.shape[0]) for array in tf.nest.flatten(split)}
    if counts == {0}:
        raise Failed(
            "load_data returned no examples for {name}. Return some, or leave {name} out if it is optional.", name=name
        )
    if len(counts) != 1:
        found = _(" and ").join(map(str, sorted(counts)))
        raise Failed(
            "load_data returned arrays of {found} examples for {name}: x and y need the same number.",
            found=found,
            name=name,
        )
    return counts.pop()


def element(split: tuple[Any, ...]) -> Any:
    """Pack a split's parts as Keras does: x alone is not a tuple."""
    return split[0] if len(split) == 1 and not isinstance(split[0], tuple) else split


# -- rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SparseRows:
    """A sparse matrix that allows taking rows: for each row its columns, and the values there."""

    columns: Any
    values: Any
    width: int

    def take(self, rows: Any) -> Any:
        """Return these rows as a tf.SparseTensor."""
        import tensorflow as tf

        columns, values = tf.gather(self.columns, rows), tf.gather(self.values, rows)
        places = tf.stack([columns.value_rowids(), tf.cast(columns.flat_values, tf.int64)], axis=1)
        return tf.SparseTensor(places, values.flat_values, [tf.size(rows, tf.int64), self.width])


def held(split: Any) -> Any:
    """Convert the arrays to TensorFlow's, for `take`."""
    import tensorflow as tf

    def hold(array: Any) -> Any:
        if isinstance(array, tf.RaggedTensor):
            return array
        if hasattr(array, "tocsr") or isinstance(array, tf.SparseTensor):
            return _sparse_rows(array)
        return tf.constant(array)

    return tf.nest.map_structure(hold, split)


def take(arrays: Any, rows: Any) -> Any:
    """Return these rows of each array that `held` returned."""
    import tensorflow as tf

    def take_of(array: Any) -> Any:
        return array.take(rows) if isinstance(array, _SparseRows) else tf.gather(array, rows)

    return tf.nest.map_structure(take_of, arrays)


def _sparse_rows(matrix: Any) -> _SparseRows:
    import numpy as np
    import tensorflow as tf

    if isinstance(matrix, tf.SparseTensor):
        ordered = tf.sparse.reorder(matrix)
        (rows, columns), values = ordered.indices.numpy().T, ordered.values.numpy()
        splits = np.searchsorted(rows, np.arange(matrix.shape[0] + 1))
    else:
        csr = matrix.tocsr().sorted_indices()
        splits, columns, values = csr.indptr, csr.indices, csr.data
    splits = splits.astype(np.int64)
    return _SparseRows(
        tf.RaggedTensor.from_row_splits(columns.astype(np.int64), splits),
        tf.RaggedTensor.from_row_splits(values, splits),
        int(matrix.shape[1]),
    )


# -- conversion ------------------------------------------------------------------------------------------------


def _part(where: str, value: Any, floats: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _part(f"{where}[{key!r}]", one, floats) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        if not value or not all(getattr(one, "shape", None) or isinstance(one, Mapping) for one in value):
            raise _no_arrays(where)
        if len({one.shape[0] for one in value if not isinstance(one, Mapping)}) > 1:
            raise Failed(
                "load_data returned for {where} a list of {count} arrays of different lengths. A list holds one "
                "array for each input of the network. If they are examples, stack them with np.stack(…), or first "
                "pad them to one length with keras.utils.pad_sequences(…).",
                where=where,
                count=len(value),
            )
        return tuple(_part(f"{where}[{index}]", one, floats) for index, one in enumerate(value))
    return _array(where, value, floats)


def _array(where: str, value: Any, floats: str) -> Any:
    import numpy as np
    import tensorflow as tf

    if not getattr(value, "shape", None) or not hasattr(value, "dtype") and not hasattr(value, "to_numpy"):
        raise _no_arrays(where)
    if isinstance(value, tf.RaggedTensor):
        return tf.cast(value, floats) if value.dtype == tf.float64 else value
    if isinstance(value, tf.SparseTensor) or hasattr(value, "tocsr"):
        return _sparse(where, value, floats)
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    if array.dtype.hasobject:
        array = _of_objects(where, array)
    if array.dtype.kind not in _KINDS and not array.dtype.hasobject:
        raise Failed(
            "load_data returned for {where} an array of {dtype}, which no network takes. Convert it to numbers, "
            "for example dates to days since the first one.",
            where=where,
            dtype=array.dtype,
        )
    return array.astype(floats) if array.dtype.kind == "f" and array.dtype.itemsize >= 8 else array


def _no_arrays(where: str) -> Failed:
    text = _(
        "load_data returned something other than NumPy arrays for {where}. Wrap lists in np.array(…).", where=where
    )
    return Failed(text)


def _sparse(where: str, value: Any, floats: str) -> Any:
    import tensorflow as tf

    if len(value.shape) != 2:
        raise Failed(
            "load_data returned for {where} a sparse tensor with {rank} axes; only matrices with a row for each "
            "example can be sparse. Make it dense with tf.sparse.to_dense(…).",
            where=where,
            rank=len(value.shape),
        )
    if isinstance(value, tf.SparseTensor):
        return tf.cast(value, floats) if value.dtype == tf.float64 else value
    return value.astype(floats) if value.dtype == "float64" else value


def _of_objects(where: str, array: Any) -> Any:
    """Convert an array of Python objects, which have to be text, numbers, or arrays of one shape."""
    import numpy as np

    if all(isinstance(one, (str, bytes)) for one in array.flat):
        return array
    try:
        made = np.array(array.tolist())
    except ValueError:
        made = array
    if made.dtype.kind in "biuf":
        return made
    kinds = sorted({type(one).__name__ for one in array.flat})
    raise Failed(
        "load_data returned for {where} an array of Python objects ({kinds}), which TensorFlow cannot take. Rows "
        "of different lengths: pad them with keras.utils.pad_sequences(…), or return tf.ragged.constant(…). "
        "Columns of text next to columns of numbers: return a dict with an array for each. Missing values (None): "
        "fill them.",
        where=where,
        kinds=", ".join(kinds),
    )
