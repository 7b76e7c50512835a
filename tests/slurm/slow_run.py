"""A small run that takes its time, so that a test can interrupt it in mid-epoch, and look what comes of it."""

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

# Small, slow enough to be caught in mid-epoch, and with all that makes resuming hard: dropout, shuffling, momentum.
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
    "train.jit_compile=false", "checkpoint.every_steps=7",
]  # fmt: skip


class Run:
    """A run on the cluster, as a test watches it."""

    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self, truba: Truba, *overrides: str) -> None:
        self.truba = truba
        self.command = [*self.prepare(), f"name={truba.project.name}", truba.runs_folder(), *overrides]
        self.submit()

    def prepare(self) -> list[str]:
        """Writes the job, and returns the overrides that choose it."""
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
        """Until start number `start`, counted from 1, has come a few steps beyond where it went on from."""

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
        """Process ids of the run's Python, wherever it runs."""
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
        """Of these the training ones, without the processes that read for them."""
        workers = self.workers()
        parents = {process: _parent_of(process) for process in workers}
        return [process for process, parent in parents.items() if parent is not None and parent not in workers]

    def kill(self) -> None:
        """All of them, without a word."""
        for process in self.workers():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.path / "logs").iterdir()))

    def finish(self, seconds: float = 400) -> dict[str, Any]:
        """The result, once Slurm's accounting has the job as COMPLETED."""
        self.wait_until(
            lambda: (self.path / "result.json").exists() or self.progress().get("state") == "failed", seconds
        )
        self.truba.cluster.wait_for_state(self.job_id, "COMPLETED", in_accounting=True)
        return dict(json.loads((self.path / "result.json").read_text()))

    def history(self) -> list[dict[str, str]]:
        with (self.path / "history.csv").open(newline="") as file:
            return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def _parent_of(process: int) -> int | None:
    """None of one that has ended since."""
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
