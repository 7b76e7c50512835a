#!/usr/bin/env bash
# submitit 1.5.4, cloudpickle 3.1.3, Python 3.11.
# Behaviour: executor.submit pickles its arguments at once; inside `with executor.batch()` the same line keeps a
#   reference, and pickles when the block ends. An argument that the loop changes in place has its last value in
#   every job.
# Expected: batch() only packs the submissions into one job array; each job gets the arguments that submit was given.
# Seen: one config, its rate set to 0.1 and then to 0.01, submitted each time: 0.1 and 0.01 without batch(), 0.01 twice
#   with it.
# Affects: anyone who sweeps by changing one config, namespace, array or model in a loop, and adds batch() to spare the
#   scheduler: every job trains the last setting, the results differ only by chance, and the others never run.
#   A copy for each submission avoids it.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet submitit==1.5.4 cloudpickle==3.1.3
fi
cd "$room"
cat > sweep.py <<'PY'
from contextlib import nullcontext

import submitit


def train(config):
    return config["rate"]


executor = submitit.AutoExecutor(folder="jobs", cluster="local")
executor.update_parameters(timeout_min=60)
seen = {}
for name, block in {"without batch()": nullcontext(), "with batch()": executor.batch()}.items():
    config, jobs = {"layers": 3}, []
    with block:
        for rate in (0.1, 0.01):
            config["rate"] = rate
            jobs.append(executor.submit(train, config))
    seen[name] = [job.result() for job in jobs]
    print(f"{name}: the jobs trained with the rates {seen[name]}")
assert seen["without batch()"] == [0.1, 0.01], "Without batch() each job has the config it was submitted with"
assert seen["with batch()"] == [0.01, 0.01], "No longer seen: with batch() every job has the last config"
PY
"$PYTHON" sweep.py
