"""What survival costs a Keras training, as ratios of one run: python keras_resume_cost.py

1. Step time: the shipped MNIST experiment (784-128-128-10, batches of 64, validation of 10,000) as it runs in a job,
   with checkpoints, TensorBoard, progress and a look for signals after every execution, over the same `fit` of the same
   model and data, shuffled the same way, with no callback at all. Both train in one process and take turns, an epoch
   each; medians of epochs.
2. Stall: a save of 25 million parameters with Adam (75 million numbers) holds training up so much longer than copying
   the same variables once. Also: what an epoch's steps take while the file is written.
3. From a signal to the saved file, and from a start to the first resumed step over a cold start to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TRAIN, VALIDATION = 60_000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each kind for the step time")
    parser.add_argument("--rounds", type=int, default=5, help="saves, and starts of each kind")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for steps in ("1", "32"):
            print_steps(steps, process("steps", options, f"{folder}/steps-{steps}", STEPS_PER_EXECUTION=steps))
        print_save(process("save", options, f"{folder}/save"))
        print_starts(options, folder)


def process(measure: str, options: argparse.Namespace, folder: str, **environment: str) -> dict[str, Any]:
    begun = time.time()
    command = [sys.executable, __file__, "--measure", measure, "--folder", folder]
    command += ["--epochs", str(options.epochs), "--rounds", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"begun": begun, **json.loads(done.stdout.splitlines()[-1])}


# -- the run that is measured ------------------------------------------------------------------------------------


def job(units: int) -> Any:
    import keras
    import numpy as np

    def build_model() -> Any:
        layers = [keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
        layers += [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(units, activation="relu")]
        return keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")])

    def load_data(name: str, folder: Path, train: int = TRAIN, validation: int = VALIDATION) -> Any:
        dice = np.random.default_rng(0)
        x, y = dice.integers(0, 256, (train + validation, 28, 28), np.uint8), dice.integers(0, 10, train + validation)
        return {"train": (x[:train], y[:train]), "validation": (x[train:], y[train:])}

    return SimpleNamespace(__file__="benchmark", build_model=build_model, load_data=load_data)


def context(folder: str, units: int = 128, **sections: Any) -> Any:
    from truba_runner.config import schema
    from truba_runner.runs.progress import Progress
    from truba_runner.runs.run_directory import RunDir
    from truba_runner.training import backend as backends
    from truba_runner.training.interrupt import Interruption

    values = {
        "name": "cost",
        "job": {"module": "cost"},
        "data": {"name": "made", "folder": folder},
        "resources": {"partition": "", "account": "", "gpus": 0},
        "cluster": {"name": "test"},
        "environment": {"name": "test"},
        **sections,
    }
    values["train"] = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **sections.get("train", {})}
    run = RunDir(Path(folder))
    run.create()
    interruption = Interruption()
    interruption.listen()
    return backends.Context(schema.experiment_from(values), job(units), run, Progress(run, "1"), interruption)


# -- 1: steps ----------------------------------------------------------------------------------------------------


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each epoch, validation and save included: `with` all that a job has, and `without`."""
    from truba_runner.training.keras import train as backend
    from truba_runner.training.keras.batches.inputs import make_plans
    from truba_runner.training.keras.batches.splits import load_splits
    from truba_runner.training.keras.callbacks import extra_callbacks
    from truba_runner.training.keras.devices.nodes import Nodes
    from truba_runner.training.keras.loop.reporter import Reporter
    from truba_runner.training.keras.loop.resume import Resume
    from truba_runner.training.keras.model import build_model
    from truba_runner.training.keras.saving import Saving
    from truba_runner.training.keras.tensorboard import StepProfiler
    from truba_runner.training.summaries import curves

    steps = int(os.environ["STEPS_PER_EXECUTION"])
    settings = {"epochs": options.epochs, "steps_per_execution": steps, "jit_compile": True}
    given = context(options.folder, train=settings)
    splits = load_splits(given)
    ours, bare = ({"plans": make_plans(given, splits, 1), "model": build_model(given, True)} for _ in range(2))
    turns = {"with": Turns(), "without": Turns()}
    beside = threading.Thread(target=fit_bare, args=(bare, options.epochs, turns["without"]), daemon=True)
    turns["with"].other, turns["without"].other = turns["without"], turns["with"]
    turns["without"].mine.acquire()
    beside.start()
    given.job.Turn = type("Turn", (), {"__new__": lambda _: turns["with"].callback()})
    given.experiment.train.callbacks = ["Turn"]
    plan = ours["plans"]["train"]
    with curves.opened(given, None, StepProfiler()) as told:
        reporter = Reporter(given, ours["model"], plan, told)
        resume = Resume(given, ours["model"], plan, reporter, Nodes(given, ["CPU:0"]), splits)
        saving = Saving(given, ours["model"], None)
        extra = extra_callbacks(given, ours["model"], plan, saving, False)
        backend._fit(given, ours["model"], ours["plans"], reporter, resume, extra)
    # The first epochs compile, and the last is not seen to its end.
    return {**{name: turn.seconds[1 : options.epochs - 1] for name, turn in turns.items()}, "steps": plan.steps}


class Turns:
    """One of two trainings that go on an epoch each, in turns; an epoch ends when the one after it begins."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.mine = threading.Semaphore(1)
        self.other: Turns = self
        self.began = 0.0

    def callback(self) -> Any:
        import keras

        return keras.callbacks.LambdaCallback(on_epoch_begin=self.epoch_begin)

    def epoch_begin(self, epoch: int, logs: Any) -> None:
        if epoch:
            self.seconds.append(time.perf_counter() - self.began)
            self.other.mine.release()
        self.mine.acquire()
        self.began = time.perf_counter()


def fit_bare(bare: dict[str, Any], epochs: int, turns: Turns) -> None:
    """With a callback between epochs alone: for a step Keras treats it like none."""
    import keras

    class Between(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            turns.epoch_begin(epoch, logs)
            plans["train"].begin(epoch)

    plans, model = bare["plans"], bare["model"]
    validation = plans["validation"].dataset
    callbacks = [Between()]
    model.fit(
        plans["train"].dataset, epochs=epochs, validation_data=validation, shuffle=False, verbose=0, callbacks=callbacks
    )


def print_steps(steps: str, found: dict[str, Any]) -> None:
    pairs = list(zip(found["with"], found["without"], strict=True))
    ratios = [ours / bare for ours, bare in pairs]
    each = [1e6 * statistics.median(kind) / found["steps"] for kind in zip(*pairs, strict=True)]
    print(
        f"step time, {steps} an execution: {statistics.median(ratios):.3f} of a fit with no callback "
        f"(median of {len(ratios)} turns; quartiles {quartiles(ratios)}; {each[0]:.0f} µs and {each[1]:.0f} µs a step)",
        flush=True,
    )


def quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f} to {high:.3f}"


# -- 2: a save ---------------------------------------------------------------------------------------------------


def measure_save(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that the training thread spends in a save, and in copying the same variables alone."""
    from truba_runner.training.keras.loop import resume as keras_resume
    from truba_runner.training.keras.loop.walk import walk_training

    settings = {"epochs": 2, "batch_size": 32}
    data = {"name": "made", "folder": options.folder, "options": {"train": 3200, "validation": 32}}
    given = context(options.folder, 4600, train=settings, data=data, checkpoint={"every_minutes": None})
    found: dict[str, list[float]] = {"save": [], "copy": [], "write": [], "during": [], "quiet": []}

    class Resume(keras_resume.Resume):
        looked = 0.0
        number = 0

        def steps_end(self, done: int, logs: Any) -> None:
            now = time.perf_counter()
            writing = self._saver.background.busy
            if self.looked and self.number > 3:
                found["during" if writing else "quiet"].append(now - self.looked)
            self.number += 1
            super().steps_end(done, logs)
            if done % 16 == 0 and len(found["save"]) < options.rounds:
                self._saver.background.wait()
                # Memory that was never touched makes a first copy ten times slower: both find some that was.
                walked = walk_training(given, self._model).pieces.values()
                variables = [piece.thing for piece in walked if piece.kind == "variable"]
                del walked
                copies = [variable.numpy() for variable in variables]
                copies.clear()
                begun = time.perf_counter()
                copies = [variable.numpy() for variable in variables]
                copies.clear()
                copied = time.perf_counter()
                self._save(keras_resume.Position(0, done))
                found["copy"].append(copied - begun)
                found["save"].append(time.perf_counter() - copied)
                if len(found["save"]) % 2:
                    self._saver.background.wait()
                    found["write"].append(time.perf_counter() - copied)
            self.looked = time.perf_counter()

    from truba_runner.training import backend as backends
    from truba_runner.training.keras import train as backend

    backend.Resume = Resume  # type: ignore[misc]
    os.chdir(given.run.path)
    return {**found, "parameters": backends.load("keras")(given)["parameters"]}


def print_save(found: dict[str, Any]) -> None:
    extra = [save - copy for save, copy in zip(found["save"], found["copy"], strict=True)]
    print(
        f"a save of {found['parameters'] / 1e6:.1f} million parameters with Adam: {statistics.median(extra):.3f} s on "
        f"top of a copy of {statistics.median(found['copy']):.3f} s (largest of {len(extra)}: {max(extra):.3f} s); "
        f"the file is written after {statistics.median(found['write']):.3f} s while training waits"
    )
    if found["during"] and found["quiet"]:
        ratio = statistics.median(found["during"]) / statistics.median(found["quiet"])
        print(f"a step while the file is written, over one while none is: {ratio:.2f}", flush=True)


# -- 3: from a signal to the file, and back ----------------------------------------------------------------------


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    """A start that is told to end at its third execution; the time of its first, and how long saving took it."""
    from truba_runner.training import backend as backends
    from truba_runner.training.interrupt import Interrupted
    from truba_runner.training.keras import train as backend
    from truba_runner.training.keras.loop import resume as keras_resume

    found: dict[str, Any] = {}

    class Resume(keras_resume.Resume):
        executions = 0

        def steps_end(self, done: int, logs: Any) -> None:
            found.setdefault("first_step", time.time())
            self.executions += 1
            if self.executions == 3:
                found["signalled"] = time.perf_counter()
                signal.raise_signal(signal.SIGUSR2)
            super().steps_end(done, logs)

    backend.Resume = Resume  # type: ignore[misc]
    settings = {"epochs": 2, "steps_per_execution": 32, "jit_compile": True}
    given = context(options.folder, train=settings)
    os.chdir(given.run.path)
    try:
        backends.load("keras")(given)
    except Interrupted:
        found["to_saved"] = time.perf_counter() - found.pop("signalled")
    restored = [event.seconds for event in given.run.submissions() if event.kind == "restored"]
    return {**found, "restored": restored}


def print_starts(options: argparse.Namespace, folder: str) -> None:
    cold, resumed, saved, restored = [], [], [], []
    for number in range(options.rounds):
        for kind in (cold, resumed):
            found = process("start", options, f"{folder}/start-{number}")
            kind.append(found["first_step"] - found["begun"])
            saved.append(found["to_saved"])
            restored += found["restored"]
    ratios = [late / early for late, early in zip(resumed, cold, strict=True)]
    print(
        f"from a signal between two executions to the saved file: {statistics.median(saved):.3f} s "
        f"(largest of {len(saved)}: {max(saved):.3f} s)"
    )
    print(
        f"from a start to the first resumed step: {statistics.median(ratios):.3f} of a cold start to the first step "
        f"({statistics.median(resumed):.2f} s and {statistics.median(cold):.2f} s, medians of {len(ratios)}); "
        f"restoring itself {statistics.median(restored):.2f} s"
    )


MEASURES = {"steps": measure_steps, "save": measure_save, "start": measure_start}

if __name__ == "__main__":
    main()
