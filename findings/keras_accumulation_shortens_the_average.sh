#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; one CPU.
# Behaviour: with use_ema and gradient_accumulation_steps=N the moving average is updated with every batch, also with
#   those that only add to the gradients: between two steps it moves N times towards weights that stand still.
# Expected: the average is updated once per step; N small batches give what one large batch gives, as they do for the
#   weights themselves. Keras documents that the average's overwrite frequency counts accumulated steps.
# Seen: six steps of SGD from 0 towards 1, momentum 0.9: the weight is 0.7379 with 8 rows at once and with 4 times 2,
#   its average 0.3594 and 0.5316.
# Affects: anyone who has to accumulate for lack of memory: an average over the last 100 steps becomes one over 100/N,
#   and fit leaves that average in the model. ema_momentum ** (1 / N) as momentum comes close.
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
export CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=${KERAS_BACKEND:-tensorflow}
"$PYTHON" - <<'PY'
import keras
import numpy as np

x = np.ones((48, 1), "float32")


def trained(accumulated, momentum=None):
    """The weight that fit leaves in the model: six steps from 0 towards 1, each with eight rows."""
    options = {"gradient_accumulation_steps": accumulated} if accumulated > 1 else {}
    if momentum:
        options.update(use_ema=True, ema_momentum=momentum)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.1, **options), "mse")
    model.fit(x, x, batch_size=8 // accumulated, verbose=0)
    return float(model.get_weights()[0][0, 0])


weights, averages = [trained(1), trained(4)], [trained(1, 0.9), trained(4, 0.9)]
mended = trained(4, 0.9 ** (1 / 4))
print(f"weight after 6 steps of 8 rows, and of 4 times 2: {weights[0]:.4f}, {weights[1]:.4f}")
print(f"the same with use_ema, momentum 0.9: {averages[0]:.4f}, {averages[1]:.4f}; with 0.9 ** (1 / 4): {mended:.4f}")
assert np.isclose(*weights), "Without an average, accumulation trains the same as a large batch"
assert averages[1] > averages[0] + 0.05, "No longer seen: with accumulation the average follows the weights faster"
assert abs(mended - averages[0]) < 0.05, "With a momentum for each batch it is about the same"
PY
