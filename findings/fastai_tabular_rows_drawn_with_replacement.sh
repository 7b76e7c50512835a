#!/usr/bin/env bash
# fastai 2.8.12, torch 2.14.1, Python 3.11; one CPU.
# Behaviour: TabularPandas(…).dataloaders() trains on rows drawn with replacement: its loader became
#   TabWeightedDL, which draws by weights even where none are given.
# Expected: an epoch uses every training row once, in a different order each time, as fastai's other loaders do.
# Seen: 96 rows an epoch, of which 58 to 62 are distinct, one of them up to 6 times.
# Affects: anyone who trains on tables: in an epoch over a third of the rows are never seen, others two or three
#   times, and a rare class may be missing from a whole epoch.
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
"$PYTHON" - <<'PY'
from collections import Counter

import pandas as pd
from fastai.data.core import TfmdDL
from fastai.tabular.all import RegressionBlock, TabularPandas

rows = 96
table = pd.DataFrame({"row": [float(n) for n in range(rows)], "y": 0.0})
data = TabularPandas(table, cont_names=["row"], y_names="y", y_block=RegressionBlock())
loader = data.dataloaders(bs=16).train
for epoch in range(3):
    seen = Counter(int(row) for _, numbers, _ in loader for row in numbers[:, 0])
    print(f"epoch {epoch}: {sum(seen.values())} of {rows} rows, {len(seen)} distinct, one {max(seen.values())} times")
    assert sum(seen.values()) == rows, "An epoch has as many rows as the table"
    assert len(seen) < 0.8 * rows, "No longer seen: rows are drawn with replacement"
plain = TfmdDL(list(range(rows)), bs=16, shuffle=True)
assert len({int(n) for batch in plain for n in batch}) == rows, "fastai's plain loader shows every row once"
PY
