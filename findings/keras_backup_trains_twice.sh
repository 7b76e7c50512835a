#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, Python 3.11; one CPU.
# Behaviour: BackupAndRestore(save_freq=N) saves the batch number but never reads it: after an interruption the
#   epoch starts again at its first batch, with the weights of its middle. And it treats a fit's first epoch as
#   epoch 0, even after a restore: a second interruption sends the training back to the very first epoch.
# Expected: a training of 3 epochs of 4 batches takes 12 optimizer steps, give or take the N since the last backup.
# Seen: interrupted after 11 steps: epoch 2 starts again, at step 11 instead of 8; interrupted after 14:
#   epoch 0 starts again, at step 14; 26 steps in the end instead of 12.
# Affects: anyone whose jobs are preempted or stopped at a time limit: examples are trained on twice, schedules that
#   count steps run ahead, and a job stopped in its first epoch loses the count of all epochs before it.
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

x = np.ones((8, 1), "float32")
begun = []


class Interrupt(keras.callbacks.Callback):
    """Stands for a job that is cut: after the third batch of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        begun.append((epoch, int(self.model.optimizer.iterations)))

    def on_train_batch_end(self, batch, logs=None):
        if (begun[-1][0], batch) == (self.at, 2):
            raise InterruptedError


def job(interrupted_in):
    begun.clear()
    interrupt = Interrupt()
    interrupt.at = interrupted_in
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [keras.callbacks.BackupAndRestore("backup", save_freq=1), interrupt]
    try:
        model.fit(x, x, batch_size=2, epochs=3, verbose=0, callbacks=callbacks)
    except InterruptedError:
        pass
    print("epochs begun, with the steps so far:", begun, "steps in the end:", int(model.optimizer.iterations))
    return begun[0]


job(2)
assert job(2) == (2, 11), "No longer seen: the epoch begins again, its three batches are trained twice"
assert job(None) == (0, 14), "No longer seen: a second interruption goes back to epoch 0"
PY
