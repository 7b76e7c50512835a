"""What is left of a Keras training: several outputs, metrics that are arrays, models that Keras cannot save or call."""

from __future__ import annotations

import csv
import json
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_files_read import curves

from truba_runner.errors import Failed
from truba_runner.training.keras.loop.logs import Logs
from truba_runner.training.keras.outputs import by_name, save
from truba_runner.training.keras.train import weights_sha256

Start = Callable[..., dict[str, Any]]

PLAIN: dict[str, Any] = {
    "train": {"callbacks": [], "epochs": 2, "metrics": [], "learning_rate": None},
    "checkpoint": {"save_model": True},
    "finish": {"plots": False},
}
DATA = """
import keras, numpy as np, tensorflow as tf
from keras import layers

def arrays(count=48):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, x[:, :3].argmax(1)

def load_data(name, folder):
    x, y = arrays()
    return {"train": (x[:32], y[:32]), "validation": (x[32:], y[32:])}

def network(first=None, **last):
    layer = layers.Dense(3, activation="softmax", **last)
    return keras.Sequential([keras.Input((6,)), first or layers.Dense(8), layer])
"""
TWO_OUTPUTS = (
    DATA
    + """
def build_model():
    x = keras.Input((6,))
    h = layers.Dense(8)(x)
    outputs = {"price": layers.Dense(1, name="price")(h), "kind": layers.Dense(3, "softmax", name="kind")(h)}
    return keras.Model(x, outputs)

def load_data(name, folder):
    x, kind = arrays()
    y = {"price": x[:, :1], "kind": kind}
    cut = lambda part: (x[part], {name: values[part] for name, values in y.items()})
    return {"train": cut(slice(0, 32)), "test": cut(slice(32, 48))}
"""
)
# As keras.io writes it: it is no network itself, but two, with an optimizer each.
GAN = (
    DATA
    + """
class GAN(keras.Model):
    def __init__(self, discriminator, generator):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seed = keras.random.SeedGenerator(7)
        self.d_loss, self.g_loss = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def train_step(self, data):
        real = data[0] if isinstance(data, tuple) else data
        noise = keras.random.normal((tf.shape(real)[0], 2), seed=self.seed)
        with tf.GradientTape() as tape:
            d_loss = tf.reduce_mean(self.discriminator(self.generator(noise)) - self.discriminator(real))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights))
        with tf.GradientTape() as tape:
            g_loss = -tf.reduce_mean(self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights))
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}

def build_model():
    part = lambda n, m: keras.Sequential([keras.Input((n,)), layers.Dense(4, "relu"), layers.Dense(m)])
    model = GAN(part(6, 1), part(2, 6))
    model.compile(keras.optimizers.Adam(), keras.optimizers.SGD())
    return model

def load_data(name, folder):
    x, _ = arrays()
    return {"train": tf.data.Dataset.from_tensor_slices(x[:32]).batch(16), "validation": (x[32:], x[32:])}
"""
)


def trained(start: Start, folder: Path, job: str, /, **sections: Any) -> tuple[dict[str, Any], str]:
    """The result of a run that must come to one, and its log."""
    merged = {name: {**PLAIN.get(name, {}), **sections.get(name, {})} for name in {*PLAIN, *sections}}
    status = start(folder, job=job, sections=merged)["status"]
    log = (folder / "log").read_text()
    assert status == 0, log
    return json.loads((folder / "result.json").read_text()), log


def refused(start: Start, folder: Path, job: str, /, **sections: Any) -> str:
    """Why a run failed."""
    merged = {name: {**PLAIN.get(name, {}), **sections.get(name, {})} for name in {*PLAIN, *sections}}
    assert start(folder, job=job, sections=merged)["status"] == 1
    return (folder / "log").read_text()


# -- several outputs -------------------------------------------------------------------------------------------


def test_each_output_has_its_predictions_and_a_classifier_its_matrix(start_keras: Start, tmp_path: Path) -> None:
    losses = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    settings = {"loss": losses, "metrics": {"kind": ["accuracy"], "price": ["mae"]}, "mixed_precision": "bfloat16"}
    result, _log = trained(start_keras, tmp_path, TWO_OUTPUTS, train=settings, finish={"plots": True})
    assert (result["predictions"], result["predicted"]) == ("predictions.npz", "test")
    with np.load(tmp_path / "predictions.npz") as found:
        assert {name: (found[name].shape, found[name].dtype.name) for name in found.files} == {
            "price": ((16, 1), "float32"),
            "kind": ((16, 3), "float32"),
        }
    assert {"test_loss", "test_kind_accuracy", "test_price_mae", "kind_accuracy"} <= set(result["metrics"])
    assert "notes" not in result
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert "confusion_matrix_kind.png" in pictures and "confusion_matrix_price.png" not in pictures
    assert ("test", "confusion_matrix_kind") in curves(tmp_path)


def test_outputs_have_names_whatever_structure_they_are_in(tmp_path: Path) -> None:
    import tensorflow as tf

    mean, log_var = np.ones((4, 2)), np.zeros((4, 2))
    assert list(by_name((mean, log_var), None)) == ["output_0", "output_1"]
    assert list(by_name([mean, log_var], ["mean", "log_var"])) == ["mean", "log_var"]
    nested = {"code": {"mean": mean, "parts": [log_var, mean]}, "file": mean, "none": None}
    assert list(by_name(nested, None)) == ["code/mean", "code/parts/0", "code/parts/1", "file"]
    # numpy.savez has a parameter of that name.
    assert save(tmp_path, by_name(nested, None)) == "predictions.npz"
    assert set(np.load(tmp_path / "predictions.npz").files) == {"code/mean", "code/parts/0", "code/parts/1", "file"}
    rows = tf.ragged.constant([[1.0, 2.0], [], [3.0]])
    assert save(tmp_path, by_name(rows, None)) == "predictions.npz"
    found = np.load(tmp_path / "predictions.npz")
    parts = np.split(found["predictions_values"], np.cumsum(found["predictions_row_lengths"])[:-1])
    assert [part.tolist() for part in parts] == [[1.0, 2.0], [], [3.0]]
    assert save(tmp_path, by_name(np.array([b"a", b"bcd"], object), None)) == "predictions.npy"
    assert np.load(tmp_path / "predictions.npy").tolist() == [b"a", b"bcd"]
    assert save(tmp_path, by_name(tf.constant([[0.5, 1.0]], tf.bfloat16), None)) == "predictions.npy"
    assert np.load(tmp_path / "predictions.npy").tolist() == [[0.5, 1.0]]


# -- networks that are not all of a network --------------------------------------------------------------------


def test_a_gan_trains_and_its_parts_are_kept(start_keras: Start, tmp_path: Path) -> None:
    settings = {"train": {"batch_size": None, "learning_rate": 0.5}, "tensorboard": {"graph": True}}
    result, log = trained(start_keras, tmp_path, GAN, **settings)
    assert set(result["metrics"]) == {"d_loss", "g_loss"}
    assert result["parameters"] == 6 * 4 + 4 + 4 + 1 + 2 * 4 + 4 + 4 * 6 + 6
    assert "predictions" not in result and result["model"] == "model.weights.h5"
    said = " ".join(result["notes"])
    for words in (
        "there is no validation",
        "there are no predictions",
        "must override `get_config()`",
        "model.built = True",
        "train.learning_rate=0.5 changed nothing",
    ):
        assert words in said and words in log
    import keras

    scope: dict[str, Any] = {}
    exec(GAN, scope)
    model = scope["build_model"]()
    model.built = True
    with warnings.catch_warnings():
        # Of the optimizers, which are new.
        warnings.simplefilter("ignore")
        model.load_weights(tmp_path / "model.weights.h5")
    assert weights_sha256(model) == result["weights_sha256"]
    generator = keras.models.load_model(tmp_path / "model.generator.keras")
    pairs = zip(model.generator.get_weights(), generator.get_weights(), strict=True)
    assert all(np.array_equal(mine, kept) for mine, kept in pairs)


def test_what_fails_after_the_training_is_a_note(start_keras: Start, tmp_path: Path) -> None:
    job = (
        DATA
        + """
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, "softmax")
    def call(self, x):
        return self.head(x)
    def predict_step(self, data):
        raise ValueError("no predictions from me")
    def summary(self, *args, **kwargs):
        raise RuntimeError("nor a summary")

def build_model():
    return Net()
"""
    )
    result, _log = trained(start_keras, tmp_path, job)
    said = " ".join(result["notes"])
    assert "no predictions from me" in said and "RuntimeError: nor a summary" in said
    assert "val_loss" in result["metrics"] and "predictions" not in result
    assert result["model"] == "model.keras" and (tmp_path / "model.keras").exists()


# -- saving ----------------------------------------------------------------------------------------------------

SCALE = """
class Scale(layers.Layer):
    def __init__(self, table):
        super().__init__()
        self.table = np.asarray(table, "float32")
    def call(self, x):
        return x * self.table
"""


def test_a_layer_that_keras_cannot_write_is_known_before_the_training(start_keras: Start, tmp_path: Path) -> None:
    job = DATA + SCALE + "def build_model():\n    return network(Scale(np.ones(6)))\n"
    kept = {"checkpoint": {"save_model": True, "model_each_epoch": True, "best_model": True}}
    result, log = trained(start_keras, tmp_path, job, **kept)
    warning = "WARNING: model.keras cannot be saved, and model.weights.h5 is saved in its place: Object Scale"
    assert warning in log and log.index(warning) < log.index("epoch 1/2")
    assert "Give the class a get_config() that returns what its __init__ takes" in log
    assert result["model"] == "model.weights.h5" and warning.removeprefix("WARNING: ") in result["notes"][0]
    models = {path.name for path in (tmp_path / "checkpoints/models").iterdir()}
    assert models == {"model_1.weights.h5", "model_2.weights.h5", "best.weights.h5"}
    # The weights, put into the same network, are those that were trained.
    scope: dict[str, Any] = {}
    exec(job, scope)
    model = scope["build_model"]()
    model.load_weights(tmp_path / "model.weights.h5")
    predictions = model.predict(scope["arrays"]()[0][32:], verbose=0)
    assert np.allclose(predictions, np.load(tmp_path / "predictions.npy"), atol=1e-6)


def test_a_callback_that_would_fail_in_saving_is_refused_at_the_start(start_keras: Start, tmp_path: Path) -> None:
    job = DATA + SCALE + "def build_model():\n    return network(Scale(np.ones(6)))\n"
    kept = {"class_name": "ModelCheckpoint", "config": {"filepath": "mine.keras"}}
    log = refused(start_keras, tmp_path, job, train={"callbacks": [kept]})
    assert "train.callbacks[0]: ModelCheckpoint: Keras cannot save this model" in log and "epoch 1/" not in log
    kept["config"] = {"filepath": "mine.weights.h5", "save_weights_only": True}
    trained(start_keras, tmp_path / "weights", job, train={"callbacks": [kept]})


def test_a_model_that_keras_would_not_load_has_its_weights_beside(start_keras: Start, tmp_path: Path) -> None:
    wrong = SCALE + '    def get_config(self):\n        return {**super().get_config(), "tables": 1}\n'
    job = DATA + wrong + "def build_model():\n    return network(Scale(np.ones(6)))\n"
    result, log = trained(start_keras, tmp_path, job)
    assert "WARNING: model.keras is saved, but Keras will not be able to load it: Scale.from_config" in log
    assert result["model"] == "model.keras" and (tmp_path / "model.weights.h5").exists()
    import keras

    scope: dict[str, Any] = {}
    exec(job, scope)
    with pytest.raises(TypeError):
        keras.models.load_model(tmp_path / "model.keras", custom_objects={"Scale": scope["Scale"]})
    # What its parent makes anew needs no config of its own.
    nested = "class Block(layers.Layer):\n    def __init__(self, **options):\n        super().__init__(**options)\n"
    nested += "        self.scale = Scale(np.ones(6))\n    def call(self, x):\n        return self.scale(x)\n"
    job = DATA + SCALE + nested + "def build_model():\n    return network(Block())\n"
    result, log = trained(start_keras, tmp_path / "nested", job)
    assert "notes" not in result


def test_a_schedule_that_keras_cannot_write_leaves_a_model_for_predicting(start_keras: Start, tmp_path: Path) -> None:
    job = (
        DATA
        + """
class Warm(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 * keras.ops.minimum(1.0, keras.ops.cast(step, "float32") / 10)

def build_model():
    model = network()
    model.compile(keras.optimizers.Adam(Warm()), "sparse_categorical_crossentropy")
    return model
"""
    )
    result, log = trained(start_keras, tmp_path, job)
    assert "model.keras is saved for predicting" in log and result["model"] == "model.keras"
    import keras

    saved = keras.models.load_model(tmp_path / "model.keras")
    assert not saved.compiled
    scope: dict[str, Any] = {}
    exec(DATA, scope)
    predictions = saved.predict(scope["arrays"]()[0][32:], verbose=0)
    assert np.array_equal(predictions, np.load(tmp_path / "predictions.npy"))


# -- metrics ---------------------------------------------------------------------------------------------------


def test_a_metric_of_each_class_is_told_for_each(start_keras: Start, tmp_path: Path) -> None:
    job = (
        DATA
        + """
def build_model():
    return network()

def load_data(name, folder):
    x, y = arrays()
    y = np.eye(3, dtype="float32")[y]
    return {"train": (x[:32], y[:32]), "validation": (x[32:], y[32:])}
"""
    )
    callbacks = [
        {"class_name": "CSVLogger", "config": {"filename": "log.csv"}},
        {"class_name": "TensorBoard", "config": {"log_dir": "tensorboard/own", "write_graph": False}},
        {"class_name": "EarlyStopping", "config": {"monitor": "val_f1_score_2", "mode": "max", "patience": 9}},
    ]
    f1 = {"class_name": "F1Score", "config": {"name": "f1_score"}}
    settings = {"loss": "categorical_crossentropy", "metrics": [f1], "callbacks": callbacks}
    sections = {"train": settings, "checkpoint": {"monitor": "val_f1_score_0", "mode": "max"}}
    # Killed in mid-epoch, with an array among what the checkpoint holds.
    sections["checkpoint"]["every_steps"] = 1  # type: ignore[index]
    merged = {name: {**PLAIN.get(name, {}), **sections.get(name, {})} for name in PLAIN}
    assert start_keras(tmp_path, job=job, sections=merged, stop="SIGTERM", look=4)["status"] == 75
    result, log = trained(start_keras, tmp_path, job, **sections)
    names = [f"{split}f1_score_{index}" for split in ("", "val_") for index in range(3)]
    assert set(names) <= set(result["metrics"]) and "f1_score" not in result["metrics"]
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and {*names} <= set(rows[0])
    assert ("validation", "epoch_f1_score_2") in curves(tmp_path)
    assert "no such metric" not in log and "not available" not in log


def test_a_whole_array_cannot_be_watched(start_keras: Start, tmp_path: Path) -> None:
    job = DATA + "def build_model():\n    return network()\n"
    job += "def load_data(name, folder):\n    x, y = arrays()\n    return {'train': (x, np.eye(3)[y])}\n"
    settings = {"loss": "categorical_crossentropy", "metrics": [{"class_name": "F1Score", "config": {"name": "f1"}}]}
    log = refused(start_keras, tmp_path, job, train=settings, checkpoint={"monitor": "val_f1", "best_model": True})
    assert "checkpoint.monitor=val_f1: its value is an array" in log
    assert "val_f1_0 or val_f1_1 or val_f1_2" in log or "val_f1_2 or val_f1_1 or val_f1_0" in log
    assert "epoch 1/" not in log


def test_what_is_told_is_numbers() -> None:
    logs = Logs({"loss": 1.5, "matrix": np.arange(4.0).reshape(2, 2), "big": np.zeros((40, 40)), "text": "a"})
    assert dict(logs) == {"loss": 1.5, "matrix_0_0": 0, "matrix_0_1": 1, "matrix_1_0": 2, "matrix_1_1": 3}
    assert logs.left_out == ["big", "text"] and logs.arrays == ["matrix", "big"]
    with pytest.raises(Failed, match="a_0 is already the name of a metric"):
        Logs({"a_0": 1.0, "a": np.zeros(2)})


ONE_NAME = """
def build_model():
    return network()
class Mine(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, "softmax")
        self.other = keras.metrics.Mean(name="accuracy")
    def call(self, x):
        return self.head(x)
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.other.update_state(loss)
        return loss
"""


@pytest.mark.parametrize(
    ("build", "metrics", "words"),
    [
        ("network()", [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "loss"}}], "two metrics are"),
        ("network()", [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "epoch"}}], "called epoch"),
        ("network()", [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "val_loss"}}], "called val_loss"),
        ("Mine()", ["accuracy"], "two metrics are called accuracy"),
    ],
)
def test_no_metric_stands_for_another(
    start_keras: Start, tmp_path: Path, build: str, metrics: list[Any], words: str
) -> None:
    job = DATA + ONE_NAME + f"def build_model():\n    return {build}\n"
    log = refused(start_keras, tmp_path, job, train={"metrics": metrics})
    assert words in log and "epoch 1/" not in log


def test_two_that_keras_numbers_apart_and_a_loss_of_the_jobs_own_are_told(start_keras: Start, tmp_path: Path) -> None:
    job = (
        DATA
        + """
class Own(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, self(x)))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}
    def test_step(self, data):
        return {"loss": self.tracker.result()}

def build_model(own=False):
    if not own:
        return network()
    model = Own([keras.Input((6,)), layers.Dense(3, "softmax")])
    model.tracker = keras.metrics.Mean(name="loss")
    model.compile("adam")
    return model
"""
    )
    top = {"class_name": "SparseTopKCategoricalAccuracy", "config": {"k": 2, "name": "top"}}
    one = {"class_name": "SparseTopKCategoricalAccuracy", "config": {"k": 1, "name": "top"}}
    result, _log = trained(start_keras, tmp_path, job, train={"metrics": [top, one]})
    assert result["metrics"]["top"] > result["metrics"]["top_1"]
    result, _log = trained(start_keras, tmp_path / "own", job, job={"options": {"own": True}})
    assert result["metrics"]["loss"] > 0


# -- Keras' own callbacks --------------------------------------------------------------------------------------


def test_a_csv_log_is_whole_after_interruptions(start_keras: Start, tmp_path: Path) -> None:
    job = DATA + "def build_model():\n    return network()\n"
    callbacks = [{"class_name": "CSVLogger", "config": {"filename": "log.csv"}}, "ProgbarLogger"]
    sections = {**PLAIN, "train": {**PLAIN["train"], "epochs": 3, "callbacks": callbacks}}
    sections["checkpoint"] = {"every_steps": 1}
    # In the second epoch, and where a row is written and its checkpoint is not.
    order = {"job": job, "sections": sections}
    assert start_keras(tmp_path, **order, stop="SIGTERM", look=6)["status"] == 75
    assert start_keras(tmp_path, **order, look=2, kill_after=0.0, held_save=2)["status"] == -signal.SIGKILL
    trained(start_keras, tmp_path, job, **{key: sections[key] for key in ("train", "checkpoint")})
    trained(start_keras, tmp_path / "undisturbed", job, **{key: sections[key] for key in ("train", "checkpoint")})
    assert (tmp_path / "log.csv").read_text() == (tmp_path / "undisturbed/log.csv").read_text()
    assert (tmp_path / "log.csv").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        ({"class_name": "BackupAndRestore", "config": {"backup_dir": "backup"}}, "the run resumes by itself"),
        ("ReduceLROnPlateau", "which does not allow that"),
    ],
)
def test_a_callback_that_works_against_the_run_is_refused(
    start_keras: Start, tmp_path: Path, callback: Any, words: str
) -> None:
    job = DATA + "def build_model():\n    return network()\n"
    decay = {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1, "decay_steps": 9}}
    optimizer = {"class_name": "SGD", "config": {"learning_rate": decay}}
    settings = {"optimizer": optimizer, "learning_rate": None, "callbacks": [callback]}
    log = refused(start_keras, tmp_path, job, train=settings)
    assert "train.callbacks[0]: " in log and words in log and "epoch 1/" not in log
