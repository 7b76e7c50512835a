#!/usr/bin/env bash
# torch 2.14.1, Python 3.11; one CPU.
# Behaviour: an optimizer with several parameter groups and one learning rate given as a tensor stores that same tensor
#   in every group, and schedulers write into it in place: what is meant for one group changes all of them.
#   ReduceLROnPlateau multiplies once per group; LambdaLR's last function decides for all groups.
# Expected: the rates that the same lines give with a float.
# Seen: two groups, a rate of 0.1, ReduceLROnPlateau(factor=0.1): after one reduction 0.01 with a float, 0.001 with a
#   tensor. LambdaLR with 1.0 for the first group and 0.1 for the second: 0.1 and 0.01 with a float, 0.01 twice with a
#   tensor.
# Affects: anyone who gives the rate as a tensor, as advised for compiled optimizers and CUDA graphs, and has groups
#   with and without weight decay: the training slows down almost to a stop at its first plateau, without a warning.
#   A tensor of its own for each group avoids it.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet torch==2.14.1 numpy==2.4.6
fi
cd "$room"
export CUDA_VISIBLE_DEVICES=
"$PYTHON" - <<'PY'
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def optimizer(rate):
    layer = torch.nn.Linear(2, 2)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate)


def rates(adam):
    return [round(float(group["lr"]), 6) for group in adam.param_groups]


def plateau(rate):
    adam = optimizer(rate)
    scheduler = ReduceLROnPlateau(adam, factor=0.1, patience=0)
    scheduler.step(1.0)
    scheduler.step(1.0)  # no better than before: one reduction
    return rates(adam)


def one_function_each(rate):
    adam = optimizer(rate)
    LambdaLR(adam, [lambda epoch: 1.0, lambda epoch: 0.1])
    return rates(adam)


seen = {}
for run in (plateau, one_function_each):
    seen[run] = run(0.1), run(torch.tensor(0.1))
    print(f"{run.__name__}: with a float {seen[run][0]}, with a tensor {seen[run][1]}")
assert seen[plateau][0] == [0.01, 0.01] and seen[one_function_each][0] == [0.1, 0.01], "A float is each group's own"
assert seen[plateau][1] == [0.001, 0.001], "No longer seen: one reduction is applied once per group"
assert seen[one_function_each][1] == [0.01, 0.01], "No longer seen: the last function decides for every group"
PY
