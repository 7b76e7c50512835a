"""What the config names, made and compiled: own losses and metrics, outputs by name, schedules, Keras' TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from event_files_read import curves
from test_keras_outputs import DATA, TWO_OUTPUTS, refused, trained

from truba_runner.errors import Failed
from truba_runner.training.backend import Context

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., dict[str, Any]]

OWN = (
    DATA
    + """
@keras.saving.register_keras_serializable("own")
class Focal(keras.losses.Loss):
    def __init__(self, factor=2.0, **options):
        super().__init__(**options)
        self.factor = factor
    def call(self, y, p):
        return self.factor * keras.losses.sparse_categorical_crossentropy(y, p)

def twice(y, p, factor=2.0):
    return factor * keras.losses.sparse_categorical_crossentropy(y, p)

def made_twice(factor=2.0):
    def inner(y, p):
        return factor * keras.losses.sparse_categorical_crossentropy(y, p)
    return inner

class Held(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate):
        self.rate = rate
    def __call__(self, step):
        return self.rate
    def get_config(self):
        return {"rate": self.rate}

class Slow(keras.optimizers.SGD):
    pass

def build_model():
    return network()
"""
)


def given(**functions: Any) -> Context:
    """A context that has a job, and nothing else that naming needs."""
    return cast(Context, SimpleNamespace(job=SimpleNamespace(__file__="jobs/mine.py", **functions)))


def own() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(OWN, scope)
    return scope


def test_one_rule_makes_all_that_the_config_names() -> None:
    import keras

    from truba_runner.training.keras.labels.named import made

    scope = own()
    job = given(**{name: scope[name] for name in ("Focal", "twice", "made_twice", "Held", "Slow")})
    losses, optimizers = keras.losses, keras.optimizers
    for name in ("Focal", "mine.Focal"):
        assert made(job, "train.loss", name, losses).factor == 2
        assert made(job, "train.loss", {"class_name": name, "config": {"factor": 3.0}}, losses).factor == 3
    assert made(job, "train.loss", "twice", losses) is scope["twice"]
    assert made(job, "train.loss", {"class_name": "mine.twice"}, losses) is scope["twice"]
    thrice = made(job, "train.loss", {"class_name": "twice", "config": {"factor": 3.0}}, losses)
    y, p = np.array([0]), np.array([[0.5, 0.5]])
    assert float(thrice(y, p)[0]) == pytest.approx(1.5 * float(scope["twice"](y, p)[0]))
    assert thrice.__name__ == "twice"
    for name in ("made_twice", {"class_name": "made_twice", "config": {"factor": 2.0}}):
        assert made(job, "train.loss", name, losses).__name__ == "inner"
    # Keras' own stay names, or are made.
    assert made(job, "train.loss", "mse", losses) == "mse"
    assert isinstance(made(job, "train.loss", {"class_name": "huber"}, losses), losses.Huber)
    assert made(None, "train.metrics", "accuracy", keras.metrics) == "accuracy"
    assert isinstance(made(job, "train.metrics", "keras.metrics.AUC", keras.metrics), keras.metrics.AUC)
    # What is in a config is made by the same rule.
    for schedule in (
        {"class_name": "Held", "config": {"rate": 0.25}},
        {"class_name": "mine.Held", "config": {"rate": 0.25}},
    ):
        slow = made(job, "train.optimizer", {"class_name": "Slow", "config": {"learning_rate": schedule}}, optimizers)
        assert type(slow) is scope["Slow"] and float(slow.learning_rate) == 0.25
    decay = {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.5, "decay_steps": 10}}
    inner = {"class_name": "Adam", "config": {"learning_rate": decay}}
    scaled = made(
        job, "train.optimizer", {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": inner}}, optimizers
    )
    assert float(scaled.inner_optimizer.learning_rate) == 0.5
    # As Keras writes an optimizer down itself.
    written = keras.optimizers.serialize(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 10)))
    assert written["config"]["learning_rate"]["module"] == "keras.optimizers.schedules"
    read = made(job, "train.optimizer", written, optimizers)
    assert type(read) is keras.optimizers.SGD and float(read.learning_rate) == 0.5
    callback = {"class_name": "LearningRateScheduler", "config": {"schedule": decay}}
    assert float(made(job, "train.callbacks[0]", callback, keras.callbacks).schedule(0)) == 0.5


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("train.loss", "Focall", "Keras has no 'Focall'. Did you mean Focal"),
        ("train.loss", "mine.Focall", "mine has no Focall. Did you mean Focal"),
        ("train.loss", {"class_name": "Focal", "config": {"factr": 1}}, "Focal cannot be made with .*factr"),
        ("train.loss", "no_such.Focal", "no_such.Focal cannot be imported"),
        (
            "train.optimizer",
            {"class_name": "Adam", "config": {"learning_rate": {"class_name": "CosinDecay"}}},
            "train.optimizer.learning_rate: Keras has no 'CosinDecay'. Did you mean CosineDecay",
        ),
    ],
)
def test_what_nobody_has_is_told_with_the_nearest(where: str, value: Any, words: str) -> None:
    import keras

    from truba_runner.training.keras.labels.named import made

    room = {"train.loss": keras.losses, "train.optimizer": keras.optimizers}[where]
    with pytest.raises(Failed, match=words):
        made(given(Focal=own()["Focal"]), where, value, room)


def test_own_losses_metrics_and_optimizers_are_trained_with(start_keras: Start, tmp_path: Path) -> None:
    plain, _log = trained(start_keras, tmp_path / "plain", OWN, train={"optimizer": "sgd"})
    settings = {
        "optimizer": {
            "class_name": "small.Slow",
            "config": {"learning_rate": {"class_name": "Held", "config": {"rate": 0.005}}},
        },
        "loss": {"class_name": "small.Focal"},
        "metrics": ["twice", {"class_name": "made_twice", "config": {"factor": 1.0}}],
    }
    result, _log = trained(start_keras, tmp_path / "own", OWN, train=settings)
    # Twice the loss and half the rate.
    assert result["metrics"]["loss"] == pytest.approx(2 * plain["metrics"]["loss"], rel=1e-4)
    assert result["metrics"]["twice"] == pytest.approx(2 * result["metrics"]["inner"], rel=1e-4)
    import keras

    mine = {name: value for name, value in own().items() if callable(value)}
    saved = keras.models.load_model(
        tmp_path / "own/model.keras", custom_objects={**mine, "inner": mine["made_twice"]()}
    )
    assert type(saved.loss).__name__ == "Focal"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": {"prize": "mse", "kind": "ce"}}, "train.loss: the network has no output 'prize'. Did you mean price"),
        ({"loss": "mse", "metrics": {"kinds": ["accuracy"]}}, "train.metrics: the network has no output 'kinds'"),
        ({"loss": "mse", "loss_weights": {"kin": 1}}, "train.loss_weights: the network has no output 'kin'"),
        ({"loss": {"price": "mse", "kind": "crossentropi"}}, "train.loss.kind: Keras has no 'crossentropi'"),
        ({"loss": "mse", "loss_weights": {"kind": "much"}}, "train.loss_weights.kind=much: it must be a number"),
    ],
)
def test_what_no_output_is_called_is_refused(settings: dict[str, Any], words: str) -> None:
    from truba_runner.config.schema import Train
    from truba_runner.training.keras.compile import compile_model

    scope: dict[str, Any] = {}
    exec(TWO_OUTPUTS, scope)
    context = SimpleNamespace(
        job=SimpleNamespace(__file__="mine.py"), experiment=SimpleNamespace(train=Train(**settings))
    )
    with pytest.raises(Failed, match=words):
        compile_model(cast(Context, context), scope["build_model"](), lambda: "sgd")


def test_losses_and_their_weights_by_output_or_in_a_list(start_keras: Start, tmp_path: Path) -> None:
    losses = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    settings = {"loss": losses, "loss_weights": {"price": 0.0, "kind": 3.0}, "metrics": {"kind": ["accuracy", "mine"]}}
    job = TWO_OUTPUTS + "def mine(y, p):\n    return keras.ops.max(p, axis=-1)\n"
    result, _log = trained(start_keras, tmp_path / "dict", job, train=settings)
    found = result["metrics"]
    assert found["loss"] == pytest.approx(3 * found["kind_loss"], rel=1e-4) and "kind_mine" in found
    as_lists = """
def build_model():
    x = keras.Input((6,))
    h = layers.Dense(8)(x)
    return keras.Model(x, [layers.Dense(1, name="price")(h), layers.Dense(3, "softmax", name="kind")(h)])
_load = load_data
def load_data(name, folder):
    return {split: (x, (y["price"], y["kind"])) for split, (x, y) in _load(name, folder).items()}
"""
    settings = {
        "loss": ["mse", "sparse_categorical_crossentropy"],
        "loss_weights": [0.0, 3.0],
        "metrics": [["mae"], ["accuracy", "mine"]],
    }
    listed, _log = trained(start_keras, tmp_path / "list", job + as_lists, train=settings)
    assert listed["metrics"]["kind_loss"] == pytest.approx(found["kind_loss"], rel=1e-4)
    assert {"kind_mine", "price_mae", "test_kind_accuracy"} <= set(listed["metrics"])


SCHEDULE = """
def build_model(scaled=False, compiled=True):
    model = network()
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9))
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
"""


@pytest.mark.parametrize("scaled", [False, True])
def test_a_rate_over_a_schedule_is_refused_before_the_training(
    start_keras: Start, tmp_path: Path, scaled: bool
) -> None:
    order = {"train": {"learning_rate": 0.1}, "job": {"options": {"scaled": scaled}}}
    log = refused(start_keras, tmp_path, DATA + SCHEDULE, **order)
    assert "train.learning_rate=0.1: this optimizer follows a schedule" in log and "epoch 1/" not in log


def test_a_rate_over_a_schedule_of_the_config_is_refused() -> None:
    from truba_runner.config.schema import Train
    from truba_runner.training.keras.model import make_optimizer

    decay = {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.5, "decay_steps": 10}}
    train = Train(optimizer={"class_name": "Adam", "config": {"learning_rate": decay}}, learning_rate=0.1)
    with pytest.raises(Failed, match=r"train.learning_rate=0.1: this optimizer follows a schedule"):
        make_optimizer(train)


# -- Keras' TensorBoard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["tensorboard.md", "tensorboard.tr.md"])
def test_the_example_of_keras_own_callback_writes_what_the_page_says(
    start_keras: Start, tmp_path: Path, page: str
) -> None:
    text = (ROOT / "docs" / page).read_text()
    (example,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "class_name: TensorBoard" in block
    ]
    callbacks = yaml.safe_load(example)["train"]["callbacks"]
    settings = {"callbacks": callbacks, "metrics": ["accuracy"]}
    _result, log = trained(start_keras, tmp_path, OWN, train=settings)
    found = curves(tmp_path)
    # Keras counts epochs from 0; the run's own curve follows.
    assert [step for step, _value in found["train", "epoch_accuracy"]] == [0, 1, 1, 2]
    histograms = [tag for (kind, tag) in found if kind == "train" and "kernel" in tag]
    assert histograms and all(len(found["train", tag]) == 2 for tag in histograms)
    assert "update_freq" not in log


def test_a_frequency_that_leaves_epochs_out_is_warned_of(start_keras: Start, tmp_path: Path) -> None:
    options = {"log_dir": "tensorboard/own", "histogram_freq": 1, "update_freq": 3, "write_graph": False}
    own = {"class_name": "TensorBoard", "config": options}
    batches = {"class_name": "ModelCheckpoint", "config": {"filepath": "m.keras", "save_freq": 4}}
    settings = {"callbacks": [own, batches], "steps_per_execution": 2, "batch_size": 11}
    _result, log = trained(start_keras, tmp_path / "warned", OWN, train=settings)
    warned = "WARNING: train.callbacks[0]: TensorBoard: with update_freq=3 Keras writes an epoch's metrics"
    assert warned in log and "an epoch has 2" in log and "tensorboard.every_steps=6" in log
    assert "WARNING: train.callbacks[1]: ModelCheckpoint: Keras counts the last execution" in log
    assert not [tag for (kind, tag) in curves(tmp_path / "warned") if "kernel" in tag]
    options["update_freq"] = 2
    _result, log = trained(start_keras, tmp_path / "right", OWN, train={**settings, "callbacks": [own]})
    assert "update_freq" not in log
