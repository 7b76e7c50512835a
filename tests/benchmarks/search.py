"""Trials per hour of a search with several workers, over Keras Tuner's chief with as many workers, and over the ideal.

The same oracle (random search, so that no trial waits for another), the same trials, all on this machine. A trial is
so many epochs of waiting, for as long as a GPU would take: it needs no core, so the machine's few do not decide.

| candidate | what it is |
|---|---|
| ideal | total seconds of training, divided by the workers |
| search | truba_runner.search: a directory, leases, a process a trial, checkpoints |
| chief | Keras Tuner's own: a chief that serves gRPC on a port, and workers that ask it |

Of both, the time from the first trial's begin to the last one's end counts; starting Python and TensorFlow does not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

EXPERIMENT = """# @package _global_
name: parabola
job: {module: nothing, backend: plain, options: {rate: 0.1, shift: 0, pause: 0}}
data: {name: none}
sweep:
  direction: min
  space:
    job.options.rate: {float: {min_value: 0.001, max_value: 0.4, sampling: log}}
"""

# Keras Tuner's worker, or its chief: which one, the environment says.
PLAIN = """
import json, os, sys, time
import keras_tuner

seconds, trials, folder = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
build = lambda hp: hp.Float("rate", 0.001, 0.4, sampling="log")

class Waits(keras_tuner.RandomSearch):
    def run_trial(self, trial, *arguments, **named):
        begun = time.time()
        time.sleep(seconds)
        with open(os.path.join(folder, "spans"), "a") as file:
            file.write(json.dumps([begun, time.time()]) + "\\n")
        return trial.hyperparameters.values["rate"]

tuner = Waits(build, objective=keras_tuner.Objective("val_loss", "min"), max_trials=trials, seed=1,
              directory=folder, project_name="plain")
tuner.search(verbose=0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 20.0], help="of training, a trial")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    for seconds in options.seconds:
        found: dict[str, list[float]] = {"search": [], "chief": []}
        for number in range(options.rounds):
            for name in ("search", "chief") if number % 2 else ("chief", "search"):
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(MEASURES[name](Path(folder), options.workers, options.trials, seconds))
        ideal = options.trials * seconds / options.workers
        print(f"{options.trials} trials of {seconds:g} s, {options.workers} workers; ideal {ideal:.1f} s")
        for name, times in found.items():
            middle = statistics.median(times)
            per_hour = 3600 * options.trials / middle
            print(f"  {name}: {middle:.1f} s ({min(times):.1f}-{max(times):.1f}), {per_hour:.0f} trials an hour, "
                  f"{ideal / middle:.3f} of the ideal")  # fmt: skip
        print(
            f"  search over chief: {statistics.median(found['chief']) / statistics.median(found['search']):.3f}",
            flush=True,
        )


def search(folder: Path, workers: int, trials: int, seconds: float) -> float:
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "parabola.yaml").write_text(EXPERIMENT)
    (folder / "jobs").mkdir()
    (folder / "jobs" / "nothing.py").write_text("")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'plain_backend'}",
        "TRUBA_CLUSTER": "local",
        "XDG_STATE_HOME": str(folder / "state"),
    }
    # As a user would make it, then worked on by several: on one machine the command itself starts a single worker.
    overrides = ["+experiment=parabola", "sweep=random", f"sweep.max_trials={trials}", f"sweep.workers={workers}",
                 f"job.options.pause={seconds / 4}"]  # fmt: skip
    first = subprocess.Popen([sys.executable, "-m", "truba_runner", *overrides], cwd=folder, env=environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    found = wait_for(lambda: next((folder / "runs").glob("*/workers/*-w0/submissions.jsonl"), None)).parent
    submitted = (found / "submissions.jsonl").read_text().splitlines()[0]
    others = []
    for index in range(1, workers):
        own = found.parent / f"{found.name[:-1]}{index}"
        (own / "submissions.jsonl").write_text(submitted + "\n")
        given = {**environment, "TRUBA_JOB_ID": f"local-{index}", "TRUBA_JOB_NAME": f"local-{index}"}
        argv = [sys.executable, "-m", "truba_runner.search.worker", str(own)]
        others.append(subprocess.Popen(argv, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    if any([process.wait() for process in (first, *others)]):
        raise SystemExit("a worker failed")
    starts, ends = [], []
    for trial in (found.parent.parent / "trials").iterdir():
        events = [json.loads(line) for line in (trial / "submissions.jsonl").read_text().splitlines()]
        starts.append(next(event["time"] for event in events if event["event"] == "started"))
        ends.append((trial / "result.json").stat().st_mtime)
    assert len(ends) == trials
    return max(ends) - min(starts)


def chief(folder: Path, workers: int, trials: int, seconds: float) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "plain.py").write_text(PLAIN)
    common = {**os.environ, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    processes = []
    for name in ("chief", *(f"tuner{index}" for index in range(workers))):
        argv = [sys.executable, str(folder / "plain.py"), str(seconds), str(trials), str(folder)]
        environment = {**common, "KERASTUNER_TUNER_ID": name}
        processes.append(subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for process in processes[1:]:
        process.wait()
    # The chief waits for ever after some of its ends.
    processes[0].kill()
    processes[0].wait()
    spans = [json.loads(line) for line in (folder / "spans").read_text().splitlines()]
    assert len(spans) == trials, len(spans)
    return max(end for _, end in spans) - min(begun for begun, _ in spans)


def wait_for(condition: Any) -> Any:
    while (found := condition()) is None:
        time.sleep(0.05)
    return found


MEASURES = {"search": search, "chief": chief}

if __name__ == "__main__":
    main()
