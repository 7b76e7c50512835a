#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; two logical CPU devices, MirroredStrategy, mixed_float16.
# Behaviour: LossScaleOptimizer checks only the first replica for finite gradients, before they are summed.
#   An overflow on the second replica alone is applied: every weight is lost, and the scale does not change.
# Expected: the step is skipped and the scale halved, whichever replica overflowed, as on one device.
# Seen: overflow in the second half: weight -inf, scale 32768 as before; the same rows on one device, or the
#   overflow in the first half: weight 1.0 as before, scale 16384.
# Affects: anyone who trains with mixed_float16 on several GPUs: the loss is nan from one step to the next, and
#   the loss scale, which is there to prevent it, never moves.
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
keras.mixed_precision.set_global_policy("mixed_float16")


def step(devices, rows):
    with tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(devices)]).scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.01), "mse")
    x = np.array(rows, "float32").reshape(-1, 1)
    model.fit(x, np.zeros_like(x), batch_size=4, epochs=1, shuffle=False, verbose=0)
    weight, scale = float(model.weights[0].numpy()[0, 0]), float(model.optimizer.dynamic_scale.numpy())
    print(f"{devices} device(s), rows {rows}: weight {weight}, scale {scale:.0f}")
    return weight, scale


# 100 * 100 * 32768 is more than float16 holds; the first rows' gradients are small.
one = step(1, [0.01, 0.01, 100, 100])
first, second = step(2, [100, 100, 0.01, 0.01]), step(2, [0.01, 0.01, 100, 100])
assert one == first == (1.0, 16384.0), "One device, or a first replica, that overflows: the step is left out"
assert not np.isfinite(second[0]) and second[1] == 32768, "No longer seen: a second replica's overflow is applied"
PY
