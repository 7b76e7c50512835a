"""Half precision, and what optimizers do on several devices: the same training as on one, and exactly resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_starts import INTERRUPTED

from truba_runner.runs.run_directory import RunDir

Start = Callable[..., dict[str, Any]]

JOB = '''
import json, os
import keras, numpy as np, tensorflow as tf
from keras import layers

def build_model(compiled="", classes=2, optimizer=None, growth=0, dropout=0.0, lazy=False, scale=2.0**20):
    x = inputs = keras.Input((6,))
    x = layers.Dropout(dropout)(layers.Dense(8, activation="tanh")(x))
    model = keras.Model(inputs, layers.Dense(classes, activation="softmax", dtype="float32")(x))
    if lazy:
        model = Lazy(classes)
    if optimizer:
        optimizer = keras.optimizers.get(optimizer)
        if growth:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=growth)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    if compiled:
        inner = keras.optimizers.Adam(0.02)
        given = keras.optimizers.LossScaleOptimizer(inner, scale) if compiled == "scaled" else inner
        model.compile(given, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

class Lazy(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.hidden, self.out = layers.Dense(8), layers.Dense(classes, activation="softmax", dtype="float32")

    def call(self, x):
        return self.out(self.hidden(x))

def load_data(name, folder, overflow=False):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(320, 6)).astype("float32")
    y = (x[:, :3].sum(1) > 0).astype("int64")
    if overflow:
        # The last row of the only batch: on the last device.
        x, y = np.ones((8, 6), "float32"), np.zeros(8, "int64")
        x[7] = 60000
        batches = lambda epoch: tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        return {"train": (x, y) if overflow == "anywhere" else batches}
    return {"train": (x, y), "validation": (x[:64], y[:64])}

class Tell(keras.callbacks.Callback):
    """Writes what each device has."""

    def on_train_begin(self, logs=None):
        self.before = [weight.numpy() for weight in self.model.weights]

    def on_train_end(self, logs=None):
        optimizer = self.model.optimizer
        copies = lambda variable: getattr(variable.value, "values", (variable.value,))
        weights = [[copy.numpy().tolist() for copy in copies(weight)] for weight in self.model.trainable_variables]
        told = {"weights": weights, "kind": type(optimizer).__name__}
        told["same"] = all((old == new.numpy()).all() for old, new in zip(self.before, self.model.weights))
        told["agreed"] = all((copy.numpy() == copies(variable)[0].numpy()).all()
                             for variable in [*self.model.trainable_variables, *optimizer.variables]
                             for copy in copies(variable))
        generators = [one for layer in self.model._flatten_layers() for one in layer._seed_generators]
        told["seeds"] = [[int(copy.numpy()[0]) for copy in copies(one.state)] for one in generators]
        if hasattr(optimizer, "dynamic_scale"):
            told["scales"] = [float(copy.numpy()) for copy in copies(optimizer.dynamic_scale)]
        with open(f"told-{os.getpid()}", "w") as file:
            json.dump(told, file)
        # Another node's process may be doing the same.
        os.replace(file.name, "told.json")
'''

TRAIN: dict[str, Any] = {"batch_size": 32, "epochs": 2, "callbacks": ["Tell"], "learning_rate": 0.02}
QUIET: dict[str, Any] = {"tensorboard": {"enabled": False}}


def sections(devices: int = 1, options: Any = None, **train: Any) -> dict[str, Any]:
    own = {**QUIET, "train": {**TRAIN, **train}, "resources": {"gpus": devices if devices > 1 else 0}}
    return {**own, "job": {"module": "small", "options": options or {}}}


OVERFLOWING = JOB.replace("overflow=False", "overflow=True").replace('activation="tanh"', 'activation="linear"')


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = RunDir(folder).result()
    return found


def trained(start: Start, folder: Path, given: dict[str, Any], **how: Any) -> Path:
    assert start(folder, sections=given, **{"job": JOB, **how})["statuses"][0] == 0, log(folder)
    return folder


# -- overflows -------------------------------------------------------------------------------------------------

COMPILED: dict[str, dict[str, Any]] = {
    "by the config": {},
    # compile() wraps the optimizer then.
    "by the job": {"compiled": "plain"},
    # No higher: the first device overflowed too.
    "by the job, scaled": {"compiled": "scaled", "scale": 2.0**12},
}


@pytest.mark.parametrize("how", COMPILED)
def test_an_overflow_on_the_second_device_alone_is_not_applied(how: str, start_keras: Start, tmp_path: Path) -> None:
    given = sections(2, COMPILED[how], mixed_precision="mixed_float16", epochs=1, batch_size=None, learning_rate=None)
    after = told(trained(start_keras, tmp_path, given, job=OVERFLOWING))
    assert after["kind"] == "LossScaleOptimizer" and after["same"]
    assert after["scales"] == [COMPILED[how].get("scale", 2.0**15) / 2] * 2


def test_an_overflow_on_one_of_two_nodes_is_not_applied(start_keras: Start, tmp_path: Path) -> None:
    # In six orders of the examples it is now on the first, now on the second.
    given = sections(1, mixed_precision="mixed_float16", epochs=6, batch_size=8)
    job = OVERFLOWING.replace("overflow=True", "overflow='anywhere'")
    after = told(trained(start_keras, tmp_path, given, job=job, tasks=2))
    assert after["same"] and after["scales"] == [2.0**15 / 2**6]


def in_half_precision(devices: int, steps: int) -> dict[str, Any]:
    # The scale begins so high that the first steps overflow.
    how = {"mixed_precision": "mixed_float16", "epochs": 6, "learning_rate": None, "steps_per_execution": steps}
    return sections(devices, {"compiled": "scaled"}, **how)


@pytest.fixture(scope="module")
def on_one_device(start_keras: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(start_keras, tmp_path_factory.mktemp("half-precision") / "one", in_half_precision(1, 4))


@pytest.mark.parametrize("devices, tasks", [(2, 1), (1, 2)], ids=["two devices", "two nodes"])
def test_half_precision_learns_on_several_devices_what_it_learns_on_one(
    devices: int, tasks: int, on_one_device: Path, start_keras: Start, tmp_path: Path
) -> None:
    given = in_half_precision(devices, steps=4 if tasks == 1 else 1)
    other = trained(start_keras, tmp_path / "other", given, tasks=tasks)
    first, second = result(on_one_device)["metrics"], result(other)["metrics"]
    assert first["accuracy"] > 0.95
    assert second == pytest.approx(first, abs=0.02)
    assert told(other)["agreed"]


# -- going on --------------------------------------------------------------------------------------------------


# On two devices also the scale of the losses; bfloat16 on two is in test_verify.py.
@pytest.mark.parametrize(("devices", "policy"), [(1, "mixed_bfloat16"), (2, "mixed_float16")])
def test_a_run_in_half_precision_goes_on_bit_for_bit(
    devices: int, policy: str, start_keras: Start, tmp_path: Path
) -> None:
    options = {"compiled": "scaled"} if policy == "mixed_float16" else {}
    given = sections(devices, options, mixed_precision=policy, learning_rate=None if options else 0.02)
    whole = trained(start_keras, tmp_path / "whole", given)
    broken = tmp_path / "broken"
    # In the first epoch's training, and in the second's.
    for look in (4, 9):
        assert start_keras(broken, sections=given, job=JOB, stop="SIGTERM", look=look)["status"] == INTERRUPTED, log(
            broken
        )
    trained(start_keras, broken, given)
    assert result(broken)["weights_sha256"] == result(whole)["weights_sha256"]
    assert told(broken)["weights"] == told(whole)["weights"]


# -- optimizers ------------------------------------------------------------------------------------------------

CLIPPED = {"class_name": "Adam", "config": {"learning_rate": 0.02, "clipnorm": 0.01}}
GATHERED = {
    "class_name": "SGD",
    "config": {
        "learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.01, "global_clipnorm": 0.05,
        "gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2,
    },
}  # fmt: skip
FREE = {"class_name": "ScheduleFreeAdamW", "config": {"learning_rate": 0.02}}


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"optimizer": CLIPPED}, 4),
        ({"optimizer": GATHERED}, 4),
        ({"optimizer": GATHERED, "growth": 3}, 1),
        ({"optimizer": FREE}, 1),
        ({"optimizer": FREE, "lazy": True}, 1),
    ],
    ids=["clipped", "accumulated and averaged", "scaled", "schedule-free", "schedule-free, built late"],
)
def test_an_optimizer_does_on_two_devices_what_it_does_on_one(
    options: dict[str, Any], steps: int, start_keras: Start, tmp_path: Path
) -> None:
    how = {"learning_rate": None, "steps_per_execution": steps}
    one = told(trained(start_keras, tmp_path / "one", sections(1, options, **how)))
    two = told(trained(start_keras, tmp_path / "two", sections(2, options, **how)))
    assert two["agreed"]
    for (alone,), (first, second) in zip(one["weights"], two["weights"], strict=True):
        assert first == second
        np.testing.assert_allclose(first, alone, rtol=0, atol=2e-6)


def test_each_device_draws_random_numbers_of_its_own(start_keras: Start, tmp_path: Path) -> None:
    given = {"epochs": 1, "steps_per_execution": 4}
    one = told(trained(start_keras, tmp_path / "one", sections(1, {"dropout": 0.5}, **given)))
    two = told(trained(start_keras, tmp_path / "two", sections(2, {"dropout": 0.5}, **given)))
    ((alone,),), ((first, second),) = one["seeds"], two["seeds"]
    assert first == alone != second
    assert two["agreed"]
