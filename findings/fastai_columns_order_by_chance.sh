#!/usr/bin/env bash
# fastai 2.8.12, torch 2.14.1, Python 3.11; one CPU.
# Behaviour: TabularDataLoaders.from_df without cont_names takes the columns from a Python set: their order, and
#   with it the meaning of each input of the model, differs from process to process.
# Expected: the columns' order in the table; the same script builds the same model in every process.
# Seen: height, weight, age, income in the training process: validation loss 0.203; age, income, weight, height in
#   another process that loads the weights: 24.357.
# Affects: anyone who saves weights (learn.save, a checkpoint) and loads them in another process that builds its
#   data the same way: the shapes fit, there is no warning, and the predictions come from mixed-up columns.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet fastai==2.8.12 torch==2.14.1 pandas==3.1.1 numpy==2.4.6
fi
cd "$room"
export CUDA_VISIBLE_DEVICES=
cat > job.py <<'PY'
import os
import warnings

import numpy as np
import pandas as pd
from fastai.tabular.all import Normalize, TabularDataLoaders, set_seed, tabular_learner

warnings.filterwarnings("ignore")
set_seed(0)
values = np.random.default_rng(0).normal(size=(640, 4)).astype("float32")
table = pd.DataFrame(values, columns=["age", "height", "weight", "income"])
table["y"] = 3 * table["age"] - 2 * table["income"]
data = TabularDataLoaders.from_df(table, procs=[Normalize], y_names="y", valid_idx=list(range(128)), bs=32)
learner = tabular_learner(data, layers=[32])
if os.path.exists("models/kept.pth"):
    learner.load("kept")
else:
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(8, 0.03)
    learner.save("kept")
with learner.no_bar():
    loss = learner.validate()[0]
print("columns", list(data.cont_names), f"validation loss {loss:.3f}")
open("losses", "a").write(f"{loss}\n")
PY
# Without PYTHONHASHSEED every process has its own seed; it is fixed here so that each run shows the same.
for seed in 1 1 2; do PYTHONHASHSEED=$seed "$PYTHON" job.py; done
"$PYTHON" - <<'PY'
trained, same, other = map(float, open("losses"))
assert abs(trained - same) < 1e-6, "With the same order, the weights that were kept predict the same"
assert other > 5 * trained, "No longer seen: another process takes the columns in another order"
PY
