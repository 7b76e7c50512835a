"""`checkpoint.verify` finds what no checkpoint holds, wherever it hides, and is silent of a training that is right.

All processes are real; those of all tests are forked from one that has imported the framework.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastai_resume_runs
import keras_resume_runs
import pytest

from truba_runner import verify
from truba_runner.config.schema import experiment_from
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training import nursery
from truba_runner.verify import starts

# Each kind depends on how often it was called, and keeps that where no checkpoint reaches.
HIDING = '''
import colorsys, itertools, os
from pathlib import Path
import keras, numpy as np, tensorflow as tf

def count(keep):
    """1, 2, 3…, from graphs too."""
    def counted():
        number = int(keep.get("COUNT", 0)) + 1
        keep["COUNT"] = str(number) if keep is os.environ else number
        return np.float32(number)
    number = tf.numpy_function(counted, [], tf.float32)
    number.set_shape(())
    return number

others = lambda: colorsys.__dict__

class AnnealedModel(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss / count(os.environ) if training else loss

class TwoOptimizers(keras.Model):
    def train_step(self, data):
        logs = super().train_step(data)
        # A rate that falls with the second optimizer's own steps.
        self.bias.assign_add(tf.ones_like(self.bias) * 0.1 / count(others()))
        return logs

class KeepsAFile(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        file = Path("count")
        number = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(str(number))
        self.model.optimizer.learning_rate = 0.1 / number

def annealed_loss(y, p):
    return tf.reduce_mean(tf.square(y - p), axis=-1) / (1 + count(others()))

class Recurrent(keras.layers.Layer):
    """Adds what it has carried over from the batches before."""
    def call(self, x, training=False):
        return x + 0.1 * tf.sin(count(others())) if training else x

def build_model(kind):
    inputs = keras.Input((3,))
    x = Recurrent()(inputs) if kind == "RNN state" else inputs
    dense = keras.layers.Dense(2)
    classes = {"model attribute": AnnealedModel, "second optimizer": TwoOptimizers}
    model = classes.get(kind, keras.Model)(inputs, dense(x))
    if kind == "second optimizer":
        model.bias = dense.bias
    if kind == "loss":
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=annealed_loss)
    return model

def load_data(name, folder, held_out, pipeline=None):
    dice = np.random.default_rng(0)
    x, y = (dice.normal(size=(40, width)).astype("float32") for width in (3, 2))
    passes = itertools.count()

    def batches(shift):
        return ((x[start : start + 8] + shift, y[start : start + 8]) for start in range(0, 40, 8))

    streams = {"": lambda: batches(next(passes)), "right ": batches}
    train = (x, y) if pipeline is None else streams[pipeline]
    return {"train": train, "validation": (x, y)} if held_out else {"train": train}
'''
KINDS = ["model attribute", "second optimizer", "callback", "loss", "RNN state", "data pipeline"]


@pytest.fixture(scope="module", autouse=True)
def one_nursery() -> Iterator[None]:
    """Each verification has one of its own, and imports the framework there; for the tests once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        kept: list[Any] = []

        def shared(environment: dict[str, str]) -> Any:
            if not kept:
                kept.append(nursery.Nursery({"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", **environment}))
                patch.setattr(kept[0], "close", lambda: None)
            return kept[0]

        patch.setattr(starts, "Nursery", shared)
        yield
        for one in kept:
            nursery.Nursery.close(one)


def begun(folder: Path, job: str, sections: dict[str, Any]) -> tuple[RunDir, Any]:
    """A run that was submitted, and its experiment."""
    run = RunDir(folder / "run")
    run.create()
    file = folder / "small.py"
    file.write_text(job)
    run.append_submission(
        Event(Kind.LOCAL, job_id="local-1", job_file=str(file), job_sha256=hashlib.sha256(job.encode()).hexdigest())
    )
    about = {"resources": {"partition": "", "account": "", "gpus": 0}, "cluster": {"name": "test"}}
    values = {"name": "small", **about, "environment": {"name": "test"}, **sections}
    values["job"] = {"module": "small", **values.get("job", {})}
    values["data"] = {"name": "made", "folder": str(folder), **values.get("data", {})}
    return run, experiment_from(values)


def found(folder: Path, job: str, sections: dict[str, Any]) -> dict[str, Any] | None:
    """What a verification has put on record."""
    run, experiment = begun(folder, job, {"drill": {"verify": True}, **sections})
    assert verify.is_due(run, experiment)
    verify.verify(run, experiment, Allocation("local-1", "", 0, 1, on_slurm=False))
    assert not verify.is_due(run, experiment) and not (run.path / "verify").exists()
    difference: dict[str, Any] | None = verify.record(run)["verified"]["first_difference"]
    return difference


def hiding(kind: str) -> dict[str, Any]:
    """The config of one kind."""
    train: dict[str, Any] = {"epochs": 9, "batch_size": 8, "loss": "mse", "metrics": ["mae"], "optimizer": "sgd"}
    if kind == "callback":
        train["callbacks"] = ["KeepsAFile"]
    if kind.endswith("data pipeline"):
        train["batch_size"] = None
    # Without a validation it is broken off once less.
    options: dict[str, Any] = {"held_out": kind in ("RNN state", "nothing")}
    if kind.endswith("data pipeline"):
        options["pipeline"] = kind.removesuffix("data pipeline")
    return {"train": train, "job": {"options": {"kind": kind}}, "data": {"options": options}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hidden_from_every_checkpoint_is_found(tmp_path: Path, kind: str) -> None:
    difference = found(tmp_path, HIDING, hiding(kind))
    assert difference is not None and difference["repeatable"], difference
    assert difference["undisturbed"] != difference["resumed"]
    assert difference["path"] in difference["text"]
    # The first checkpoint after the first break; a stream may have none within an epoch.
    assert (difference["epoch"], difference["step"]) in [(2, 4), *([(3, 0)] if kind == "data pipeline" else [])]


def test_a_training_that_is_right_is_not_complained_of(tmp_path: Path) -> None:
    names = ("train", "tensorboard", "checkpoint")
    sections = {name: keras_resume_runs.SECTIONS[name] for name in names}
    assert found(tmp_path, keras_resume_runs.JOB, sections) is None


def test_neither_is_a_stream_that_follows_from_the_epoch(tmp_path: Path) -> None:
    assert found(tmp_path, HIDING, hiding("right data pipeline")) is None


def test_neither_is_one_in_half_precision_on_two_devices(tmp_path: Path) -> None:
    sections = {**hiding("nothing"), "resources": {"partition": "", "account": "", "gpus": 2}}
    sections["train"].update(mixed_precision="mixed_bfloat16", steps_per_execution=2)
    assert found(tmp_path, HIDING, sections) is None


def test_neither_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorFlow is in the one that all share.
    monkeypatch.setattr(starts, "Nursery", nursery.Nursery)
    fastai_resume_runs.make_photographs(tmp_path / "photographs")
    names = ("train", "job")
    sections = {name: fastai_resume_runs.SECTIONS[name] for name in names}
    assert found(tmp_path, fastai_resume_runs.JOB, {**sections, "data": {"workers": 0}}) is None
