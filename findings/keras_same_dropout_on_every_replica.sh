#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; two logical CPU devices, MirroredStrategy.
# Behaviour: the state of a layer's SeedGenerator is the same on every replica: the parts of a batch get
#   the same dropout mask, row for row.
# Expected: every row of a batch gets its own mask, as on one device.
# Seen: of 1000 inputs kept in neither row, one, both: one device 271, 482, 247; two devices 523, 0, 477.
# Affects: anyone who trains with Dropout, noise or augmentation layers on several GPUs: N replicas draw the
#   same random numbers N times, and the regularisation is weaker than tuned.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet keras==3.15.1 tensorflow==2.21.0 numpy==2.4.6
fi
cd "$room"
export CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=tensorflow
"$PYTHON" - <<'PY'
import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def kept(devices):
    """How many of 1000 inputs neither row kept, one and both: a weight moves by 1 for each that kept its input."""
    with tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(devices)]).scope():
        dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((1000,)), keras.layers.Dropout(0.5, seed=1), dense])
        model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(np.ones((2, 1000), "float32"), np.ones((2, 1), "float32"), batch_size=2, verbose=0)
    moved = np.rint(model.weights[0].numpy().ravel()).astype(int)
    return np.bincount(moved, minlength=3).tolist()


one, two = kept(1), kept(2)
print("kept in neither row, one, both; one device:", one, "two devices:", two)
assert one[1] > 400, "On one device each row has a mask of its own"
assert two[1] == 0, "No longer seen: both replicas' rows have the same mask"
PY
