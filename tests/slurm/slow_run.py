"""A small slow run that a test can interrupt in the middle of an epoch."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba import Truba, events, run_dirs

# Slow enough to be interrupted within an epoch, with everything that makes resuming hard: dropout, shuffling, momentum.
SLOW_JOB = """
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers


class Pause(layers.Layer):
    def call(self, x):
        def pause(value):
            time.sleep(0.08)
            return value

        y = tf.numpy_function(pause, [x], tf.float32)
        y.set_shape(x.shape)
        return y


def build_model():
    inputs = keras.Input((8,))
    x = layers.Dense(16, activation="relu")(Pause()(inputs))
    x = layers.BatchNormalization()(layers.Dropout(0.3)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def load_data(name, folder):
    random = np.random.default_rng(0)
    x = random.normal(size=(480, 8)).astype("float32")
    y = x[:, :3].argmax(axis=1)
    return {"train": (x[:400], y[:400]), "validation": (x[400:], y[400:])}
"""
STEPS_PER_EPOCH = 20
SETTINGS = [
    "job.module=slow", "data.name=digits", "train.epochs=4", "train.batch_size=20", "train.steps_per_execution=1",
    "train.jit_compile=false", "checkpoint.every_steps=7", "finish.plots=false",
]  # fmt: skip


class Run:
    """A run on the cluster that a test watches."""

    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self, truba: Truba, *overrides: str) -> None:
        self.truba = truba
        self.command = [*self.prepare(), f"name={truba.project.name}", truba.runs_folder(), *overrides]
        self.submit()

    def prepare(self) -> list[str]:
        """Write the job and return the overrides that select it."""
        self.truba.write("jobs/slow.py", SLOW_JOB)
        return ["+experiment=mnist", *SETTINGS]

    def submit(self) -> None:
        done = self.truba(*self.command)
        assert done.returncode == 0, done.stderr
        (self.path,) = run_dirs(self.truba.project)
        self.job_id = str(
            next(event["job_id"] for event in reversed(events(self.path)) if event["event"] == "submitted")
        )

    def progress(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / "progress.json").read_text()))
        except FileNotFoundError:
            return {}

    def starts(self) -> int:
        return sum(event["event"] == "started" for event in events(self.path))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {self.progress()} {self.log()[-3000:]}"
            time.sleep(0.05)

    def wait_for_step(self, start: int, seconds: float = 300) -> None:
        """Wait until start number `start` (from 1) has trained a few steps, or the run has a result."""

        def trains() -> bool:
            starts = [event for event in events(self.path) if event["event"] == "started"]
            progress = self.progress()
            if len(starts) < start or progress.get("state") != "running" or "step" not in progress:
                return False
            epoch, step = starts[-1]["position"]
            done = (progress["epoch"] - 1) * self.steps_per_epoch + progress["step"]
            return bool(done > epoch * self.steps_per_epoch + step + 2)

        self.wait_until(lambda: trains() or (self.path / "result.json").exists(), seconds)

    def node(self) -> str:
        return str(next(event["host"] for event in reversed(events(self.path)) if event["event"] == "started"))

    def workers(self) -> list[int]:
        """Return the ids of the run's Python processes, on any node."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if b"truba_runner.worker" in words and b"srun" not in words[0] and os.fsencode(self.path.name) in words[-2]:
                found.append(int(entry.name))
        return found

    def ranks(self) -> list[int]:
        """Return the ids of the training processes, without their data-loading children."""
        workers = self.workers()
        parents = {process: _parent_of(process) for process in workers}
        return [process for process, parent in parents.items() if parent is not None and parent not in workers]

    def kill(self) -> None:
        """Send SIGKILL to all processes of the run."""
        for process in self.workers():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.path / "logs").iterdir()))

    def finish(self, seconds: float = 400) -> dict[str, Any]:
        """Wait until Slurm's accounting has the job as COMPLETED and return the run's result."""
        self.wait_until(
            lambda: (self.path / "result.json").exists() or self.progress().get("state") == "failed", seconds
        )
        self.truba.cluster.wait_for_state(self.job_id, "COMPLETED", in_accounting=True)
        return dict(json.loads((self.path / "result.json").read_text()))

    def history(self) -> list[dict[str, str]]:
        with (self.path / "history.csv").open(newline="") as file:
            return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def _parent_of(process: int) -> int | None:
    """Return the parent's process id; None if the process has ended."""
    try:
        after_the_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(after_the_name[1])


def check_same(run: Run, whole: tuple[dict[str, Any], list[dict[str, str]]], **counts: int) -> None:
    result = run.finish()
    assert result["weights_sha256"] == whole[0]["weights_sha256"]
    assert result["metrics"] == whole[0]["metrics"]
    assert run.history() == whole[1]
    assert {key: result[key] for key in counts} == counts
