#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; two logical CPU devices, MirroredStrategy.
# Behaviour: clipnorm and global_clipnorm clip each replica's gradients before they are summed.
# Expected: the sum is clipped, so that the same batch gives the same step on one device and on two
#   (it does without clipping).
# Seen: clipnorm=0.5 and a rate of 1: one device moves the weights by [0.0099 0.4999], norm 0.5; two by [0.5 0.5],
#   norm 0.707. The same with global_clipnorm=0.5.
# Affects: anyone who moves a training from one GPU to several with the same global batch: the norm that was
#   given does not bound the step, an outlier is clipped only within its own half, and the weights differ.
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
# An outlier in the second half.
x = np.array([[1, 0], [1, 0], [0, 1], [0, 100]], "float32")
y = np.array([[1], [1], [1], [1]], "float32")


def step(devices, **clipping):
    with tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(devices)]).scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
        model.compile(keras.optimizers.SGD(1.0, **clipping), "mse")
    model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return model.weights[0].numpy().ravel()


assert np.allclose(step(1), step(2)), "Without clipping, one device and two train the same"
for clipping in ({"clipnorm": 0.5}, {"global_clipnorm": 0.5}):
    one, two = step(1, **clipping), step(2, **clipping)
    print(clipping, "one device:", one, "norm", np.linalg.norm(one), "two:", two, "norm", np.linalg.norm(two))
    assert np.linalg.norm(one) < 0.5001, "The bound holds on one device"
    assert np.linalg.norm(two) > 0.51, "No longer seen: replicas are clipped before they are added up"
PY
