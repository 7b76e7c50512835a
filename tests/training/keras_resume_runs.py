"""Start small Keras runs for tests, each start in its own process, which may really be killed.

As a script it reads orders from standard input, one JSON object a line (the arguments of `start`), and answers each
with a line. TensorFlow is imported once: every start is a fork of a process that has not used it yet.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from forked_starts import StopAt, has_ended, in_child, small_disk

from truba_runner.code import job_module
from truba_runner.config import schema
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage.files import write_atomically
from truba_runner.training import backend
from truba_runner.training.ranks.group import Agreement, Group

JOB = '''
import random
import keras, numpy as np, tensorflow as tf
from keras import layers

def build_model(units=8, augment=True):
    global common
    common = tf.random.Generator.from_seed(2)
    x = inputs = keras.Input((8, 8, 1))
    x = layers.RandomFlip()(x) if augment else x
    # Keras fails to make the common seed in a step of several devices, each of which runs in a thread.
    x = x if tf.distribute.has_strategy() else Jitter()(x)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.BatchNormalization()(layers.Conv2D(units, 3)(x))
    x = layers.Dropout(0.3)(layers.Flatten()(layers.ReLU()(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))

class Jitter(layers.Layer):
    """Draws from the seed that all share who have none of their own, and from generators of TensorFlow's."""

    def __init__(self):
        super().__init__()
        self.generators = [tf.random.Generator.from_seed(1)]

    def call(self, x, training=False):
        if not training:
            return x
        noise = keras.random.normal(keras.ops.shape(x)) + self.generators[0].normal(tf.shape(x))
        return x + 0.01 * (noise + common.normal(tf.shape(x)))

def load_data(name, folder, train=200):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(train + 60, 8, 8, 1)).astype("float32")
    y = (x[:, :, :4].sum((1, 2, 3)) > 2).astype("int64") + (x[:, :4].sum((1, 2, 3)) > 2)
    return {"train": (x[:train], y[:train]), "validation": (x[train:], y[train:])}

class Averaging(keras.callbacks.Callback):
    """Has a state, draws from the host's random numbers, and changes what is trained with it."""

    total = 0.0

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(3)

    def on_train_batch_end(self, batch, logs=None):
        chance = random.random() * np.random.random() * float(self.generator.uniform(()))
        self.total = 0.9 * self.total + logs["loss"] * chance

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.model.optimizer.learning_rate = rate * (0.99 + 0.001 * self.total)

    def get_state(self):
        return {"total": self.total}

    def set_state(self, state):
        self.total = state["total"]
'''

SECTIONS: dict[str, Any] = {
    "name": "small",
    "job": {"module": "small"},
    "data": {"name": "made"},
    "train": {
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "batch_size": 16,
        "epochs": 4,
        "learning_rate": 0.01,
        "callbacks": [
            {"class_name": "EarlyStopping", "config": {"patience": 30, "restore_best_weights": True}},
            {"class_name": "ReduceLROnPlateau", "config": {"factor": 0.5, "patience": 1, "min_delta": 0.02}},
            "Averaging",
            # The job's own TensorBoard callback is resumed like ours.
            {"class_name": "TensorBoard", "config": {"log_dir": "tensorboard/own", "write_graph": False}},
        ],
    },
    "tensorboard": {"every_steps": 1},
    "resources": {"partition": "", "account": "", "gpus": 0},
    "cluster": {"name": "test"},
    "environment": {"name": "test"},
    "checkpoint": {"save_model": False},
    "finish": {"plots": False},
    "sweep": {},
}

# Number of starts so far.
_jobs = {"count": 0}


class StopWhenAsked(StopAt):
    """A StopAt that counts each check for an interruption; Keras' loop makes one before each step."""

    @property
    def requested(self) -> bool:
        self.check()
        return super().requested

    def check(self) -> None:
        self.count(lambda name: signal.raise_signal(signal.Signals[name]))


def watch_agreements(stop: StopWhenAsked) -> None:
    """Count each time that this rank and the others agree, for which they do not read `requested`."""
    agree = Group.agree

    def counted(self: Group, due: bool = False) -> Agreement:
        stop.check()
        return agree(self, due)

    Group.agree = counted  # type: ignore[method-assign]


def train(folder: Path, sections: dict[str, Any], job: str, stop: StopWhenAsked, rank: int, tasks: int) -> None:
    """Train one start of one rank as the worker does."""
    values = {key: {**SECTIONS.get(key, {}), **sections.get(key, {})} for key in {*SECTIONS, *sections} - {"name"}}
    values = {**values, "name": "small", "data": {"name": "made", "folder": str(folder), **sections.get("data", {})}}
    run = RunDir(folder)
    run.create()
    # Another rank may be reading the file.
    write_atomically(folder / "small.py", job.encode(), durable=False)
    if tasks > 1:
        watch_agreements(stop)
    stop.listen()
    loaded = job_module.load(folder / "small.py")
    progress = Progress(run, "1", writes=rank == 0)
    given = backend.Context(schema.experiment_from(values), loaded, run, progress, stop, rank, tasks)
    os.chdir(folder)
    with stop.recognised():
        result = backend.load("keras", "find" if given.experiment.sweep.kind == "lr_find" else "train")(given)
    if rank == 0:
        run.write_result({**result, "looks": stop.looks})


def start(
    folder: str,
    sections: dict[str, Any] | None = None,
    job: str = JOB,
    stop: str | None = None,
    look: int = 0,
    kill_after: float | None = None,
    slow_save: float = 0.0,
    held_save: int = 0,
    disk_kb: int = 0,
    tasks: int = 1,
    stop_rank: int = 0,
) -> dict[str, Any]:
    """Train in `tasks` forks, like the nodes of a job, until all end.

    At check number `look` for interruptions, fork `stop_rank` gets the signal `stop`, or the only fork is killed from
    outside `kill_after` seconds later; with `held_save`, while that save of this start is half written.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "reached").unlink(missing_ok=True)
    _jobs["count"] += 1
    children: dict[int, int] = {}
    for rank in range(tasks):
        child = os.fork()
        if not child:
            if disk_kb:
                small_disk(path / "checkpoints", disk_kb)
            _as_rank(rank, tasks)
            awaits_kill = kill_after is not None and not held_save
            stops = StopWhenAsked(stop if rank == stop_rank else None, look, path / "reached", awaits_kill)
            in_child(
                path / "log",
                lambda stops=stops, rank=rank: train(path, sections or {}, job, stops, rank, tasks),
                slow_save,
                held_save,
                path / "reached",
            )
        children[child] = rank
    if kill_after is not None:
        (child,) = children
        while not (path / "reached").exists() and not has_ended(child):
            time.sleep(0.01)
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    statuses = _wait(children)
    half_saved = [str(half) for half in path.glob("checkpoints/.checkpoint-*")]
    return {"status": statuses[0], "statuses": statuses, "half_saved": half_saved}


def _as_rank(rank: int, tasks: int) -> None:
    # Each start needs another port, which derives from the job id: the last one may not be free yet.
    job_id = os.getppid() + _jobs["count"]
    variables = {"JOB_ID": job_id, "JOB_NODELIST": "127.0.0.1", "TASKS_PER_NODE": tasks}
    os.environ.update({f"SLURM_{name}": str(value) for name, value in variables.items()})


def _wait(children: dict[int, int]) -> list[int]:
    """Wait for all children and return exit statuses by rank; if one is killed, kill the others, as srun does."""
    statuses = [0] * len(children)
    while children:
        child, status = os.wait()
        rank = children.pop(child)
        statuses[rank] = os.waitstatus_to_exitcode(status)
        if statuses[rank] == -signal.SIGKILL:
            for other in children:
                os.kill(other, signal.SIGKILL)
    return statuses


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    import keras  # noqa: F401
    import tensorflow  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(start(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
