"""What writing for TensorBoard and copying it costs a training, as ratios of one run: python tensorboard_writing.py

The shipped MNIST network (784-128-128-10, batches of 64) is trained four times in one process, an epoch each in turns:
without event files, with them straight on the shared disk, by way of the node's own disk, and with Keras' own
TensorBoard callback at the same interval. Here both disks are this machine's. Copied every second; a job copies
every 30.

Two figures a kind, in processor time, which other work on the machine disturbs less: an epoch's over that of the one
without (the whole process', one training at a time), and what the training's own thread has spent in writing a point.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
KINDS = ("off", "straight", "node", "keras")


class Turns:
    """Trainings that go on an epoch each, one after the other."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        self._next = dict(zip(kinds, [*kinds[1:], kinds[0]], strict=True))
        self._free = {kind: threading.Semaphore(int(kind == kinds[0])) for kind in kinds}
        self._began: dict[str, float] = {}

    def epoch_begins(self, kind: str) -> None:
        now = time.process_time()
        if kind in self._began:
            self.seconds[kind].append(now - self._began[kind])
            self._free[self._next[kind]].release()
        self._free[kind].acquire()
        self._began[kind] = time.process_time()

    def ends(self, kind: str) -> None:
        self._free[self._next[kind]].release()


class Writing:
    """The processor time that the thread that trains spends in writing points."""

    def __init__(self) -> None:
        self.seconds, self.points = 0.0, 0

    def watch(self, curves: Any) -> Any:
        real = curves.board.scalars

        def scalars(*given: Any) -> None:
            begun = time.thread_time()
            real(*given)
            self.seconds += time.thread_time() - begun
            self.points += 1

        curves.board.scalars = scalars
        return curves


def train(kind: str, given: Any, turns: Turns, writing: Writing, every_steps: int) -> None:
    """One of the trainings, as the Keras backend makes it."""
    import keras

    from truba_runner.training.keras import train as backend
    from truba_runner.training.keras.batches.inputs import make_plans
    from truba_runner.training.keras.batches.splits import load_splits
    from truba_runner.training.keras.devices.nodes import Nodes
    from truba_runner.training.keras.loop.reporter import Reporter
    from truba_runner.training.keras.loop.resume import Resume
    from truba_runner.training.keras.model import build_model
    from truba_runner.training.keras.tensorboard import StepProfiler
    from truba_runner.training.summaries import curves

    splits = load_splits(given)
    plans, model = make_plans(given, splits, 1), build_model(given, True)
    extra = [keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: turns.epoch_begins(kind))]
    if kind == "keras":
        folder = str(given.run.path / "keras")
        extra.append(keras.callbacks.TensorBoard(folder, write_graph=False, update_freq=every_steps))
    with curves.opened(given, None, StepProfiler()) as told:
        reporter = Reporter(given, model, plans["train"], writing.watch(told))
        resume = Resume(given, model, plans["train"], reporter, Nodes(given, ["CPU:0"]), splits)
        backend._fit(given, model, plans, reporter, resume, extra)
    turns.ends(kind)


def main() -> None:
    from keras_resume_cost import context

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--steps-per-execution", type=int, default=1)
    parser.add_argument("--every-steps", type=int, default=10)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    turns, writing = Turns(KINDS), {kind: Writing() for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for kind in KINDS:
            settings = {"epochs": options.epochs, "steps_per_execution": options.steps_per_execution}
            told = {"enabled": kind in ("straight", "node"), "node_local": kind == "node", "sync_seconds": 1.0}
            given = context(
                f"{folder}/{kind}",
                train={**settings, "jit_compile": True},
                tensorboard={**told, "every_steps": options.every_steps},
                checkpoint={"every_minutes": None},
                cluster={"name": "test", "scheduler": "slurm"},
            )
            arguments = (kind, given, turns, writing[kind], options.every_steps)
            threads.append(threading.Thread(target=train, args=arguments, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The first epochs compile, and the last is not seen to its end.
    found = {kind: seconds[1:] for kind, seconds in turns.seconds.items()}
    for kind in KINDS[1:]:
        ratios = [ours / off for ours, off in zip(found[kind], found["off"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        line = f"{kind}: an epoch takes {middle:.3f} of one without ({low:.3f} to {high:.3f}, {len(ratios)} turns)"
        if writing[kind].points:
            each = writing[kind].seconds / writing[kind].points
            share = writing[kind].seconds / sum(turns.seconds[kind])
            line += f"; a point {1e6 * each:.0f} µs, {100 * share:.2f} % of it ({writing[kind].points} points)"
        print(line, flush=True)
    print(f"load {os.getloadavg()[0]:.1f}; an epoch without: {statistics.median(found['off']):.2f} s", flush=True)


if __name__ == "__main__":
    main()
