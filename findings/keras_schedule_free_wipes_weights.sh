#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; one CPU.
# Behaviour: ScheduleFreeAdamW, built by fit as optimizers usually are, starts its average at 0 instead of at the
#   weights: the first step sets the weights to about 0. With optimizer.build(...) before fit it does not.
# Expected: it makes no difference what builds the optimizer, and a step moves no weight by much more than the rate.
# Seen: weights of 5.0 after one step of 0.001: built by fit -0.001, built before fit 4.999.
# Affects: anyone who uses ScheduleFreeAdamW as documented: initialisers and, in fine-tuning, pretrained weights are
#   wiped in the first step, without a warning.
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


def step(built_before):
    optimizer = keras.optimizers.ScheduleFreeAdamW(learning_rate=0.001)
    kernel = keras.initializers.Constant(5.0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_initializer=kernel)])
    model.compile(optimizer, "mse")
    if built_before:
        optimizer.build(model.trainable_variables)
    model.fit(np.ones((4, 3), "float32"), np.zeros((4, 1), "float32"), verbose=0)
    return model.weights[0].numpy().ravel()


lazily, before = step(False), step(True)
print("weights of 5.0 after one step of 0.001; built by fit:", lazily, "built before fit:", before)
assert np.allclose(before, 5.0, atol=0.01), "Built before fit, a step is about the learning rate"
assert np.abs(lazily).max() < 0.01, "No longer seen: the first step sets the weights to about 0"
PY
