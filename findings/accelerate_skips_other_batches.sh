#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.14.1, Python 3.11; one CPU.
# Behaviour: save_state in mid-epoch, then load_state and skip_first_batches, with a shuffling DataLoader: the
#   resumed process shuffles again, and skips the first batches of the new order, not those it had trained on.
# Expected: before and after the resume together, every example is trained on once, which is the purpose of
#   skipping; all the more with set_seed at the start of both processes.
# Seen: of 32 examples, half before and half after the resume: 8 never, 8 twice; with the seedable sampler none.
# Affects: anyone who resumes long epochs, on clusters with time limits above all: examples are trained on twice and
#   as many never. DataLoaderConfiguration(use_seedable_sampler=True) avoids it; it is not the default.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet accelerate==1.15.0 torch==2.14.1
fi
cd "$room"
export CUDA_VISIBLE_DEVICES=
cat > job.py <<'PY'
import sys

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed

kind, resumes = sys.argv[1], sys.argv[2] == "resumed"
set_seed(7)
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=kind == "seedable"))
loader = torch.utils.data.DataLoader(torch.arange(32), batch_size=4, shuffle=True)
model = torch.nn.Linear(1, 1)
model, loader = accelerator.prepare(model, loader)
if resumes:
    accelerator.load_state(kind)
batches = accelerator.skip_first_batches(loader, 4) if resumes else loader
with open(f"{kind}.seen", "a") as seen:
    for number, batch in enumerate(batches):
        print(*batch.tolist(), file=seen)
        if not resumes and number == 3:
            accelerator.save_state(kind)
            break
PY
for kind in default seedable; do
    for part in first resumed; do "$PYTHON" job.py "$kind" "$part"; done
done
"$PYTHON" - <<'PY'
from collections import Counter

never = {}
for kind in ("default", "seedable"):
    seen = Counter(open(f"{kind}.seen").read().split())
    never[kind] = 32 - len(seen)
    print(f"{kind}: {never[kind]} of 32 examples never, {sum(times > 1 for times in seen.values())} twice")
assert never["seedable"] == 0, "With the seedable sampler, every example is seen once"
assert never["default"] > 0, "No longer seen: the resumed process skips batches of another order"
PY
