"""How long MNIST takes with the shipped experiment, over the tutorial's own script: python mnist_over_tutorial.py

Ours runs as it does in a job: progress, history, TensorBoard and validation on. The tutorial's script has no
validation and no metric. Each measurement is a process of its own, as a user's run is, so that neither finds the
other's compiled functions, threads or heap; the two take turns, and a ratio is taken within each turn, so that a
machine that others slow down for a while slows both.
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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a measurement; the first compiles")
    parser.add_argument("--data", type=Path, help="mnist.npz; without it, images of its shape and size are made")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.data, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = options.data.resolve() if options.data else make_images(Path(folder) / "mnist.npz")
        rounds = []
        for number in range(options.rounds):
            rounds.append({name: run(name, file, options.epochs) for name in MEASURES})
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    print_table(rounds, "real MNIST" if options.data else "images made from scikit-learn's digits")


def run(name: str, file: Path, epochs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, "--data", str(file), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def make_images(file: Path) -> Path:
    """As many images as MNIST has: the 1,797 digits, each time shifted by up to two pixels."""
    import numpy as np

    sys.path.insert(0, str(ROOT / "jobs"))
    import mnist

    splits = mnist.load_digits()
    random = np.random.default_rng(0)
    arrays = {}
    for name, split, count in (("train", "train", TRAIN_IMAGES), ("test", "validation", TEST_IMAGES)):
        images, digits = splits[split]
        rows = random.integers(0, len(images), count)
        shifts = random.integers(-2, 3, (count, 2))
        arrays[f"x_{name}"] = np.stack(
            [np.roll(images[row], shift, (0, 1)) for row, shift in zip(rows, shifts, strict=True)]
        )
        arrays[f"y_{name}"] = digits[rows].astype(np.uint8)
    np.savez(file, **arrays)
    return file


def measure_tutorial(file: Path, epochs: int) -> dict[str, float]:
    import keras

    sys.path.insert(0, str(HERE))
    import tutorial_mnist

    ends = []
    clock = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: ends.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()),
    )
    history = tutorial_mnist.train(file, epochs, [clock])
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return summary(seconds, seconds, history.history["loss"][-1])


def measure_ours(file: Path, epochs: int) -> dict[str, float]:
    import yaml

    sys.path.insert(0, str(ROOT))
    from truba_runner.code import job_module
    from truba_runner.config import schema
    from truba_runner.runs import run_directory
    from truba_runner.runs.progress import Progress
    from truba_runner.training import backend

    class Clock(Progress):
        """Progress that also notes when training begins, when an epoch's last step ends, and when the epoch does."""

        def update(self, **values):
            if "steps_per_epoch" in values:
                self.began, self.trained, self.whole = time.perf_counter(), [], []
            super().update(**values)

        def step(self, *values):
            super().step(*values)
            self.last_step = time.perf_counter()

        def epoch_end(self, *values):
            super().epoch_end(*values)
            self.trained.append(self.last_step - self.began)
            self.whole.append(time.perf_counter() - self.began)
            self.began += self.whole[-1]

    shipped = yaml.safe_load((ROOT / "conf/experiment/mnist.yaml").read_text())
    experiment = schema.experiment_from(
        {
            **shipped,
            "job": {"module": "mnist"},
            "data": {"name": "mnist", "folder": str(file.parent)},
            "train": {**shipped["train"], "epochs": epochs},
            "resources": {"partition": "", "account": "", "gpus": 0},
            "cluster": {"name": "benchmark"},
            "environment": {"name": "benchmark"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = run_directory.RunDir(Path(folder) / "mnist-benchmark")
        run_dir.create()
        train = backend.load("keras")
        job = job_module.load(ROOT / "jobs" / "mnist.py")
        clock = Clock(run_dir, "benchmark")
        result = train(backend.Context(experiment, job, run_dir, clock))
    return summary(clock.trained, clock.whole, result["metrics"]["loss"])


MEASURES = {"tutorial": measure_tutorial, "ours": measure_ours}


def summary(trained: list[float], whole: list[float], loss: float) -> dict[str, float]:
    """`trained`: seconds of each epoch without validation; `whole`: with it, where there is one."""
    steps = -(-TRAIN_IMAGES // 64)
    return {
        "step, ms": 1000 * statistics.median(trained[1:]) / steps,
        "epoch without validation, s": statistics.median(trained[1:]),
        "epoch with what validation there is, s": statistics.median(whole[1:]),
        "first epoch, compiling, s": whole[0],
        f"all {len(whole)} epochs, s": sum(whole),
        "loss at the end": loss,
    }


def print_table(rounds: list[dict[str, dict[str, float]]], data: str) -> None:
    print(f"{len(rounds)} rounds on {data}; medians, and the ratio's smallest and largest")
    print(f"{'':40}{'tutorial':>10}{'ours':>10}{'ratio':>8}{'spread':>14}")
    for name in rounds[0]["ours"]:
        tutorial, ours = ([turn[side][name] for turn in rounds] for side in ("tutorial", "ours"))
        line = f"{name:40}{statistics.median(tutorial):10.3f}{statistics.median(ours):10.3f}"
        if name != "loss at the end":
            ratios = [mine / theirs for mine, theirs in zip(ours, tutorial, strict=True)]
            line += f"{statistics.median(ratios):8.2f}{min(ratios):8.2f}–{max(ratios):.2f}"
        print(line)


if __name__ == "__main__":
    main()
