"""Trains small runs in this process, interrupted as told; what `test_keras_resume.py` starts in processes of its own.

As a script it takes one JSON object: `runs`, a list of `{"folder", "sections", "stops", …}` (see `until_done`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from truba_runner import backends, config, job_module
from truba_runner.errors import Failed
from truba_runner.interrupt import Interrupted, Interruption
from truba_runner.progress import Progress
from truba_runner.rundir import RunDir

JOB = '''
import keras, numpy as np
from keras import layers

def build_model(units=8, flip=True, metrics=True):
    x = inputs = keras.Input((8, 8, 1))
    x = layers.RandomFlip()(x) if flip else x
    x = layers.GaussianNoise(0.1)(x)
    x = layers.BatchNormalization()(layers.Conv2D(units, 3)(x))
    x = layers.Dropout(0.3)(layers.Flatten()(layers.ReLU()(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))

def load_data(name, folder, train=200):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(train + 60, 8, 8, 1)).astype("float32")
    y = (x[:, :, :4].sum((1, 2, 3)) > 2).astype("int64") + (x[:, :4].sum((1, 2, 3)) > 2)
    return {"train": (x[:train], y[:train]), "validation": (x[train:], y[train:])}

def build_callbacks():
    return [
        keras.callbacks.EarlyStopping(patience=30, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.02),
        Averaging(),
    ]

class Averaging(keras.callbacks.Callback):
    """Has a state, draws from the host's random numbers, and changes what is trained with it."""

    total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.total = 0.9 * self.total + logs["loss"] * np.random.random()

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.model.optimizer.learning_rate = rate * (0.99 + 0.001 * self.total)

    def get_state(self):
        return {"total": self.total}

    def set_state(self, state):
        self.total = state["total"]
'''


def context(folder: Path, sections: dict[str, Any], stop: tuple[str, int] | None = None) -> backends.Context:
    values: dict[str, Any] = {
        "name": "small",
        "job": {"module": "small"},
        "data": {"name": "made", "folder": str(folder)},
        "train": {
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
            "batch_size": 16,
            "epochs": 4,
            "learning_rate": 0.01,
        },
        "resources": {"partition": "", "account": "", "gpus": 0},
        "cluster": {"name": "test"},
        "environment": {"name": "test"},
        "checkpoint": {"save_model": False},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    run = RunDir(folder / "small-0")
    run.create()
    (folder / "small.py").write_text(JOB)
    job = job_module.load(folder / "small.py")
    return backends.Context(config.experiment_from(values), job, run, Progress(run, "1"), StopAt(stop))


class StopAt(Interruption):
    """A signal that comes before the Nth time that somebody looks, from the moment that it would be held."""

    def __init__(self, stop: tuple[str, int] | None) -> None:
        super().__init__()
        self.looks = 0
        self.stop = stop

    @property
    def requested(self) -> bool:
        self.looks += 1
        if self.stop == ("signal", self.looks):
            self.received.append(10)
        if self.stop == ("kill", self.looks):
            raise Killed
        return super().requested


class Killed(BaseException):
    """Nothing is saved any more: as near to a kill as one process comes."""


def until_done(folder: str, sections: dict[str, Any], stops: list[tuple[str, int]]) -> dict[str, Any]:
    """Starts the run once for each of `stops`, and then to its end."""
    import keras

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    ended, looks = [], 0
    for stop in [*map(tuple, stops), None]:
        keras.utils.clear_session()
        given = context(path, sections, stop)  # type: ignore[arg-type]
        os.chdir(given.run.path)
        try:
            result = backends.load("keras")(given)
        except (Interrupted, Killed, Failed) as end:
            ended.append(f"{type(end).__name__} {end}".strip())
            continue
        looks = given.interruption.looks  # type: ignore[attr-defined]
        break
    return {"result": result, "ended": ended, "looks": looks}


def main(plan: dict[str, Any]) -> None:
    results = [until_done(**run) for run in plan["runs"]]
    print(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
