#!/usr/bin/env bash
# tensorflow 2.21.0, numpy 2.4.6, Python 3.11.
# Behaviour: an array that a generator yields to Dataset.from_generator, or a tf.numpy_function returns, is not copied.
#   If the pipeline takes a slice of it along the first axis, TensorFlow treats that slice as its own memory and writes
#   the result of the next operation into it: into the caller's NumPy array.
# Expected: the array is unchanged, as it is without the slice.
# Seen: an array of ones, yielded twice, `.map(lambda rows: rows[8:] * 2.0)`: its rows from 8 on are 4.0 afterwards;
#   with numpy_function, three elements, 8.0.
# Affects: anyone who crops on the first axis, or slices batches, and then scales: the second epoch has different data
#   from the first. MirroredStrategy slices each batch for its replicas, and whether it then writes depends on timing:
#   two runs of one script trained different weights.
# This affects arrays aligned to 64 bytes; TensorFlow copies others.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet tensorflow==2.21.0 numpy==2.4.6
fi
cd "$room"
export CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=3
cat >try.py <<'PY'
import numpy as np
import tensorflow as tf

store = np.empty(16 * 64 + 16, "float32")
begin = -store.ctypes.data % 64 // 4
x = store[begin : begin + 16 * 64].reshape(16, 64)
x[:] = 1
spec = tf.TensorSpec((16, 64))


def whole(rows):
    return rows * 2.0


def part(rows):
    return rows[8:] * 2.0


def returned(number):
    return tf.ensure_shape(tf.numpy_function(lambda number: x, [number], tf.float32), (16, 64))


def after(dataset, function):
    x[:] = 1
    for _ in dataset.map(function):
        pass
    return [float(value) for value in np.unique(x)]


yielded = tf.data.Dataset.from_generator(lambda: iter([x, x]), output_signature=spec)
answered = tf.data.Dataset.range(3).map(returned)
for name, dataset in {"from_generator": yielded, "numpy_function": answered}.items():
    print(f"{name}: the array has {after(dataset, whole)} after `rows * 2`, {after(dataset, part)} after `rows[8:] * 2`")
assert after(yielded, whole) == after(answered, whole) == [1.0]
assert after(yielded, part) == [1.0, 4.0], "No longer seen with from_generator"
assert after(answered, part) == [1.0, 8.0], "No longer seen with numpy_function"
PY
"$PYTHON" try.py
