"""How long the text experiment takes with data.preprocessing=async, over =model: python async_preprocessing.py

Both train the same network on the same texts, with the same weights at the end. Each measurement is a process of its
own; the two take turns, and a ratio is taken within each turn, so that a machine that others slow down slows both.
Without a GPU there is little to gain: the tokens are made by the same cores that train. `--units` makes the network
smaller, and the share of the preprocessing larger, as a GPU would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent.parent
MODES = ("model", "async")
# Joined, the made reviews are as long as real ones: about 230 words.
JOINED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a measurement; the first compiles")
    parser.add_argument("--reviews", type=int, default=1000, help="texts; four fifths are trained on")
    parser.add_argument("--units", type=int, default=128, help="width of the network")
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    rounds = []
    for number in range(options.rounds):
        rounds.append({mode: run(mode) for mode in MODES})
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    print_table(rounds, options)


def run(mode: str) -> dict[str, float | str]:
    done = subprocess.run([sys.executable, *sys.argv, "--measure", mode], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float | str]:
    import yaml

    sys.path.insert(0, str(ROOT))
    from truba_runner.code import job_module
    from truba_runner.config import schema
    from truba_runner.runs import run_directory
    from truba_runner.runs.progress import Progress
    from truba_runner.training import backend

    class Clock(Progress):
        """Progress that also notes the seconds from the beginning of each epoch to the end of its last step."""

        seconds: list[float] = []

        def update(self, **values):
            if "steps_per_epoch" in values:
                self.began, self.steps = time.perf_counter(), values["steps_per_epoch"]
            super().update(**values)

        def step(self, *values):
            super().step(*values)
            self.last_step = time.perf_counter()

        def epoch_end(self, *values):
            super().epoch_end(*values)
            self.seconds.append(self.last_step - self.began)
            self.began = time.perf_counter()

    train = backend.load("keras")
    shipped = yaml.safe_load((ROOT / "conf/experiment/text_classification.yaml").read_text())
    job = job_module.load(ROOT / "jobs" / "text_classification.py")
    experiment = schema.experiment_from(
        {
            **shipped,
            "job": {**shipped["job"], "options": {**shipped["job"]["options"], "units": options.units}},
            "data": {"name": "reviews", "folder": ".", "preprocessing": options.measure},
            "train": {**shipped["train"], "epochs": options.epochs},
            "checkpoint": {"save_model": False},
            "tensorboard": {"enabled": False},
            "resources": {"partition": "", "account": "", "gpus": 0},
            "cluster": {"name": "benchmark"},
            "environment": {"name": "benchmark"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = run_directory.RunDir(Path(folder) / "text-benchmark")
        run_dir.create()
        clock = Clock(run_dir, "benchmark")
        result = train(backend.Context(experiment, long_reviews(job, options.reviews), run_dir, clock))
    return {
        "step, ms": 1000 * statistics.median(clock.seconds[1:]) / clock.steps,
        "first epoch, compiling, s": clock.seconds[0],
        "device": result["devices"][0],
        "weights": result["weights_sha256"],
    }


def long_reviews(job, count: int):
    """The shipped job, with texts as long as real reviews."""
    import numpy as np

    def load_data(name, folder):
        short, labels = job.make_reviews(count * JOINED, seed=0)
        texts = [" ".join(short[start : start + JOINED]) for start in range(0, len(short), JOINED)]
        x, y = job.shuffled(texts, labels[::JOINED])
        held_out = len(x) // 5
        return {"train": (x[held_out:], y[held_out:]), "validation": (np.array(x[:held_out]), y[:held_out])}

    functions = {"build_model": job.build_model, "build_preprocessing": job.build_preprocessing}
    return SimpleNamespace(__file__=job.__file__, load_data=load_data, **functions)


def print_table(rounds: list[dict[str, dict[str, float | str]]], options: argparse.Namespace) -> None:
    weights = {side["weights"] for turn in rounds for side in turn.values()}
    device = rounds[0]["async"]["device"]
    print(f"{len(rounds)} rounds on {device}, {options.units} units; medians, and the ratio's smallest and largest")
    print(f"{'':30}{'model':>10}{'async':>10}{'ratio':>8}{'spread':>14}")
    for name in ("step, ms", "first epoch, compiling, s"):
        inside, ahead = ([turn[mode][name] for turn in rounds] for mode in MODES)
        ratios = [mine / theirs for mine, theirs in zip(ahead, inside, strict=True)]
        print(
            f"{name:30}{statistics.median(inside):10.3f}{statistics.median(ahead):10.3f}"
            f"{statistics.median(ratios):8.2f}{min(ratios):8.2f}–{max(ratios):.2f}"
        )
    print(f"{len(weights)} set{'s' if len(weights) > 1 else ''} of weights")


if __name__ == "__main__":
    main()
