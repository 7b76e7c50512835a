"""The Keras backend on real, small data. Run as a script it trains in a process of its own: see `elsewhere`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from event_files_read import curves, told

from truba_runner.code import job_module
from truba_runner.config import schema
from truba_runner.errors import Failed
from truba_runner.runs import checkpoints
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.training import backend
from truba_runner.training.keras import tensorboard

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = yaml.safe_load((ROOT / "conf/experiment/mnist.yaml").read_text())["train"]
DIGITS_TRAIN, DIGITS_TEST = 1437, 360

# A part of the digits, for a network that trains in a moment.
SMALL_JOB = """
import keras, mnist

def build_model(units=8, compiled=False):
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.Dense(units, activation="relu"), keras.layers.Dense(10, activation="softmax")])
    if compiled:
        model.compile(keras.optimizers.SGD(0.125), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def load_data(name, folder, train=300, validation=71, test=0):
    (x, y), (v, w), _ = mnist.load_digits().values()
    sizes = {"validation": (v[:validation], w[:validation]), "test": (v[-test:], w[-test:])}
    wanted = {"validation": validation, "test": test}
    return {"train": (x[:train], y[:train])} | {key: sizes[key] for key in sizes if wanted[key]}
"""


class Recorded(Progress):
    """Keeps what it was told."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run, "1")
        self.steps: list[tuple[int, int]] = []
        self.updates: list[dict[str, Any]] = []

    def update(self, **values: Any) -> None:
        self.updates.append(values)
        super().update(**values)

    def step(self, epoch: int, step: int, metrics: Any, total: int | None = None) -> None:
        self.steps.append((epoch, step))
        super().step(epoch, step, metrics, total)


def context(folder: Path, job: ModuleType | Any, /, **sections: Any) -> backend.Context:
    values = {
        "name": "mnist",
        "job": {"module": "mnist"},
        "data": {"name": "digits", "folder": str(folder)},
        "train": {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "batch_size": 32},
        "resources": {"partition": "", "account": "", "gpus": 0},
        "cluster": {"name": "test"},
        "environment": {"name": "test"},
        "tensorboard": {"enabled": False},
        "checkpoint": {"save_model": False},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}  # type: ignore[dict-item]
    run = RunDir(folder / "mnist-0")
    run.create()
    return backend.Context(schema.experiment_from(values), job, run, Recorded(run))


def train(given: backend.Context) -> dict[str, Any]:
    before = os.getcwd()
    os.chdir(given.run.path)
    try:
        return backend.load("keras")(given)
    finally:
        os.chdir(before)


def shipped_job() -> ModuleType:
    return job_module.load(ROOT / "jobs" / "mnist.py")


def small_job(folder: Path) -> ModuleType:
    sys.path.insert(0, str(ROOT / "jobs"))
    file = folder / "small.py"
    file.write_text(SMALL_JOB)
    return job_module.load(file)


def shipped_digits(folder: Path, **train_settings: Any) -> backend.Context:
    """The shipped experiment, on the digits."""
    sections: dict[str, Any] = {"tensorboard": {"enabled": True}, "checkpoint": {"save_model": True}}
    return context(folder, shipped_job(), train={**SHIPPED, "epochs": 3, **train_settings}, **sections)


def elsewhere(*runs: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of small runs, one after the other in a fresh process; `folder` of each is where it trains."""
    command = [sys.executable, __file__, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return [{**result, "log": done.stdout + done.stderr} for result in results]


def main(runs: list[dict[str, Any]]) -> None:
    results: list[dict[str, Any]] = []
    for run in runs:
        folder = Path(run.pop("folder"))
        folder.mkdir(exist_ok=True)
        try:
            shipped = run.pop("shipped", False)
            given = shipped_digits(folder) if shipped else context(folder, small_job(folder), **run)
            results.append(train(given))
        except Failed as error:
            results.append({"failed": str(error)})
    print(json.dumps(results))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def job(folder: Path) -> ModuleType:
    return small_job(folder)


# -- the shipped experiment ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    given = shipped_digits(tmp_path_factory.mktemp("digits"))
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        result = train(given)
    history = (given.run.path / "history.csv").read_text().splitlines()
    return SimpleNamespace(context=given, path=given.run.path, result=result, log=log.getvalue(), history=history)


@pytest.fixture(scope="module")
def saved(digits: SimpleNamespace) -> Any:
    import keras

    return keras.models.load_model(digits.path / digits.result["model"])


def test_the_log_holds_the_tutorials_summary_and_a_plain_line_an_epoch(digits: SimpleNamespace) -> None:
    assert "Total params: 118,282" in digits.log
    assert "\x1b" not in digits.log and "\r" not in digits.log
    lines = [line for line in digits.log.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3 and lines[-1].startswith("epoch 3/3  step 23/23  loss ")


def test_the_result_says_what_was_trained(digits: SimpleNamespace) -> None:
    import keras
    import tensorflow as tf

    result = digits.result
    assert result["parameters"] == 118_282
    assert result["examples"] == {"train": DIGITS_TRAIN, "validation": DIGITS_TEST, "test": DIGITS_TEST}
    assert (result["epochs"], result["devices"]) == (3, ["CPU:0"])
    assert result["versions"] == {"keras": keras.__version__, "tensorflow": tf.__version__}
    assert 0 < result["seconds_training"] < 300
    assert json.loads(json.dumps(result)) == result


def test_it_learns(digits: SimpleNamespace) -> None:
    assert digits.result["metrics"]["test_accuracy"] > 0.9
    assert digits.result["metrics"]["accuracy"] > 0.9


def test_its_metrics_are_those_of_the_model_that_it_saved(digits: SimpleNamespace, saved: Any) -> None:
    x, y = shipped_job().load_digits()["validation"]
    plain = saved.evaluate(x, y, verbose=0, return_dict=True)
    for name, value in plain.items():
        assert digits.result["metrics"][f"test_{name}"] == pytest.approx(value, rel=1e-5)
        assert digits.result["metrics"][f"val_{name}"] == pytest.approx(value, rel=1e-5)


def test_its_hash_is_that_of_the_weights_in_order(digits: SimpleNamespace, saved: Any) -> None:
    joined = b"".join(weights.tobytes() for weights in saved.get_weights())
    assert digits.result["weights_sha256"] == hashlib.sha256(joined).hexdigest()


def test_predictions_lie_in_the_run_directory_in_the_order_of_the_test_set(digits: SimpleNamespace, saved: Any) -> None:
    import numpy as np

    predictions = np.load(digits.path / digits.result["predictions"], allow_pickle=False)
    assert predictions.shape == (DIGITS_TEST, 10)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
    x, _ = shipped_job().load_digits()["validation"]
    np.testing.assert_allclose(predictions, saved.predict(x, verbose=0), atol=1e-5)


def test_history_has_a_row_an_epoch_and_ends_with_the_results_metrics(digits: SimpleNamespace) -> None:
    header, *rows = [line.split(",") for line in digits.history]
    assert header == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    last = dict(zip(header, map(float, rows[-1]), strict=True))
    assert {name: last[name] for name in header[1:5]} == {
        name: value for name, value in digits.result["metrics"].items() if not name.startswith("test_")
    }
    assert last["learning_rate"] == pytest.approx(0.001)
    assert 0 < sum(float(row[-1]) for row in rows) <= digits.result["seconds_training"] + 0.01


def test_progress_knows_the_run_s_length_and_its_last_metrics(digits: SimpleNamespace) -> None:
    record = digits.context.run.progress()
    assert (record.epochs, record.steps_per_epoch, record.epoch, record.step) == (3, 23, 3, 23)
    assert record.metrics["val_loss"] == digits.result["metrics"]["val_loss"]


def test_a_batch_and_an_execution_that_are_not_full_count_as_what_they_are(
    digits: SimpleNamespace, folder: Path, job: ModuleType
) -> None:
    # 1,437 images are 22 batches of 64 and one of 29: less than one execution of 32 steps.
    assert digits.result["steps"] == 3 * 23
    # 300 images are 9 batches of 32 and one of 12: executions of 4, 4 and 2 steps.
    given = context(folder / "partial", job, train={"epochs": 2, "steps_per_execution": 4, "jit_compile": True})
    assert train(given)["steps"] == 20
    steps = given.progress.steps  # type: ignore[attr-defined]
    assert steps == [(epoch, step) for epoch in (1, 2) for step in (4, 8, 10)]


def test_an_execution_ends_at_its_last_step_whichever_step_keras_names() -> None:
    import keras

    from truba_runner.training.keras.loop.callback_list import callback_list

    told: list[int] = []
    done: list[int] = []
    resume: Any = SimpleNamespace(skipping=False, monitor="", steps_end=lambda steps, logs: done.append(steps))
    plan: Any = SimpleNamespace(comes_to=lambda step: True)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", steps_per_execution=4)
    own = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: told.append(batch))
    hooks = callback_list(resume, plan, [own], model)
    # Keras 3.10, the last one for Python 3.9, names an execution's first step; Keras 3.15 its last.
    for first, named in ((0, 0), (4, 7)):
        hooks.on_train_batch_begin(first)
        hooks.on_train_batch_end(named, {"loss": 1.0})
    assert told == [3, 7] and done == [4, 8]


def test_tensorboard_has_the_curves_of_the_history_and_a_point_an_execution(digits: SimpleNamespace) -> None:
    rows = [dict(zip(digits.history[0].split(","), row.split(","), strict=True)) for row in digits.history[1:]]
    found = curves(digits.path)
    for name in ("loss", "accuracy"):
        for kind, prefix in (("train", ""), ("validation", "val_")):
            values = [float(row[prefix + name]) for row in rows]
            assert found[kind, f"epoch_{name}"] == [(epoch, pytest.approx(values[epoch - 1])) for epoch in (1, 2, 3)]
    # All 23 steps of an epoch are one execution.
    assert [step for step, _ in found["train", "batch_accuracy"]] == [23, 46, 69]
    assert [value for _, value in found["train", "learning_rate"]] == [pytest.approx(0.001)] * 3
    assert {tag for kind, tag in found if kind == "train"} == {
        "batch_loss", "batch_accuracy", "learning_rate", "examples_per_second",
        "epoch_loss", "epoch_accuracy", "epoch_learning_rate",
    }  # fmt: skip


def test_tensorboards_confusion_matrix_counts_the_test_set(digits: SimpleNamespace) -> None:
    import numpy as np

    ((step, value),) = [(step, value) for kind, step, value in told(digits.path) if value.tag == "confusion_matrix"]
    picture = (digits.path / "plots" / "confusion_matrix.png").read_bytes()
    assert step == 3 and value.image.encoded_image_string == picture and picture.startswith(b"\x89PNG")
    assert 300 < value.image.width == value.image.height
    assert {path.parent.name for path in digits.context.run.tensorboard.rglob("events.*")} == {
        "train", "validation", "test",
    }  # fmt: skip
    _, y = shipped_job().load_digits()["validation"]
    predictions = np.load(digits.path / "predictions.npy")
    matrix = tensorboard._matrix(y, predictions)
    assert matrix.sum() == DIGITS_TEST and matrix.shape == (10, 10)
    assert matrix.trace() / DIGITS_TEST == pytest.approx(digits.result["metrics"]["test_accuracy"])
    for actual in range(10):
        assert matrix[actual].sum() == (y == actual).sum()


def test_what_is_no_classification_has_no_confusion_matrix() -> None:
    import numpy as np

    thirds, halves = np.full((4, 3), 1 / 3), np.array([[0.2], [0.7], [0.9], [0.1]])
    assert tensorboard._matrix(np.array([0, 1, 1, 1]), halves).tolist() == [[1, 0], [1, 2]]
    assert tensorboard._matrix(np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 0]]).tolist() == [
        [2, 0, 0], [0, 1, 0], [0, 1, 0],
    ]  # fmt: skip
    for labels, predictions in [
        (np.array([0.5, 1.5, 0.0, 1.0]), thirds),  # A regression.
        (np.array([0, 1, 2, 3]), thirds),  # A class that the network does not have.
        (np.array([0, 1, 1, 0]), halves * 2),  # No chances.
        (np.array([[1, 1, 0]] * 4), thirds),  # Several labels an example.
        (np.array([0, 1, 1]), thirds),
        ({"a": np.array([0, 1, 1, 0])}, thirds),
        (np.array([0, 1, 1, 0]), {"a": thirds}),
        (np.array([0, 1, 1, 0]), thirds[:, None]),
    ]:
        assert tensorboard._matrix(labels, predictions) is None


def test_tensorboard_has_the_graph_and_a_profile_where_they_are_asked_for(folder: Path, job: ModuleType) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    asked = {"enabled": True, "graph": True, "profile_steps": [4, 6], "every_steps": None}
    given = context(folder / "graph", job, tensorboard=asked, train={"epochs": 2})
    result = train(given)
    plain = train(context(folder / "no graph", job, train={"epochs": 2}))
    assert result["weights_sha256"] == plain["weights_sha256"], "looking changes nothing"
    (file,) = (path for path in (given.run.tensorboard / "train").iterdir() if path.is_file())
    reader, graphs, models = PyRecordReader_New(str(file)), [], []
    for _ in range(3):
        reader.GetNext()
        event = Event.FromString(reader.record())
        graphs += [GraphDef.FromString(event.graph_def)] if event.graph_def else []
        models += [value.tensor.string_val[0] for value in event.summary.value if value.tag == "keras"]
    assert {"MatMul", "Softmax", "Relu"} <= {node.op for node in graphs[0].node}
    assert json.loads(models[0])["class_name"] == "Sequential"
    (profile,) = (given.run.tensorboard / "train" / "plugins" / "profile").iterdir()
    (trace,) = profile.iterdir()
    assert profile.name == "steps-4-6" and trace.name.endswith(".xplane.pb") and 1000 < trace.stat().st_size < 5e6
    assert not [tag for _, tag in curves(given.run.path) if tag.startswith("batch")]


# -- the same, bit for bit -------------------------------------------------------------------------------------


def test_another_process_trains_the_same_weights_bit_for_bit(digits: SimpleNamespace, tmp_path: Path) -> None:
    (other,) = elsewhere({"folder": str(tmp_path), "shipped": True})
    assert other["weights_sha256"] == digits.result["weights_sha256"]
    assert other["metrics"] == digits.result["metrics"]


def test_another_seed_trains_other_weights(folder: Path, job: ModuleType) -> None:
    hashes = {train(context(folder / f"seed-{seed}", job, train={"seed": seed}))["weights_sha256"] for seed in (0, 1)}
    assert len(hashes) == 2


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("two")
    even = {"train": {"epochs": 2, "steps_per_execution": 4, "jit_compile": True}, "resources": {"gpus": 2}}
    odd = {**even, "data": {"options": {"train": 301, "validation": 31}}, "checkpoint": {"save_model": True}}
    indivisible = {**even, "train": {"batch_size": 33}}
    runs = {"even": even, "again": even, "odd": odd, "indivisible": indivisible}
    results = elsewhere(*({"folder": str(path / name), **run} for name, run in runs.items()))
    return SimpleNamespace(path=path, **dict(zip(runs, results, strict=True)))


def test_two_devices_train_the_same_weights_bit_for_bit(two_devices: SimpleNamespace) -> None:
    assert two_devices.even["devices"] == ["CPU:0", "CPU:1"]
    assert two_devices.even["weights_sha256"] == two_devices.again["weights_sha256"]
    assert two_devices.even["metrics"] == two_devices.again["metrics"]


def test_two_devices_train_what_one_trains(two_devices: SimpleNamespace, folder: Path, job: ModuleType) -> None:
    one = train(context(folder / "one", job, train={"epochs": 2}))
    assert two_devices.even["steps"] == one["steps"] == 20
    assert two_devices.even["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert two_devices.even["weights_sha256"] != one["weights_sha256"]


def test_two_devices_say_that_gpus_are_missing_and_xla_is_off(two_devices: SimpleNamespace) -> None:
    assert "WARNING: 2 GPUs a node were requested, but this node has none" in two_devices.even["log"]
    assert "train.jit_compile is off" in two_devices.even["log"]
    assert "auto_shard" not in two_devices.even["log"]


def test_two_devices_evaluate_and_predict_every_one_of_an_odd_number(two_devices: SimpleNamespace) -> None:
    import keras
    import numpy as np

    result, path = two_devices.odd, two_devices.path / "odd" / "mnist-0"
    # The 301st image is left out, another one each epoch: 300 are 9 batches of 32 and one of 12.
    assert (result["steps"], result["examples"]) == (20, {"train": 301, "validation": 31})
    x, y = shipped_job().load_digits()["validation"]
    model = keras.models.load_model(path / "model.keras")
    plain = model.evaluate(x[:31], y[:31], verbose=0, return_dict=True)
    assert {name: result["metrics"][f"val_{name}"] for name in plain} == pytest.approx(plain, rel=1e-5)
    np.testing.assert_allclose(np.load(path / "predictions.npy"), model.predict(x[:31], verbose=0), atol=1e-5)


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(two_devices: SimpleNamespace) -> None:
    from truba_runner.training.keras.devices.devices import check_batch_size

    assert "train.batch_size=33 cannot be divided equally among 2 devices" in two_devices.indivisible["failed"]
    with pytest.raises(Failed, match="Set train.batch_size=63 or 66"):
        check_batch_size(64, 3)
    with pytest.raises(Failed, match="Set train.batch_size=4,"):
        check_batch_size(3, 4)
    check_batch_size(64, 4)


# -- data ------------------------------------------------------------------------------------------------------


def test_mnist_is_read_from_its_file(tmp_path: Path) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        "y_train": np.arange(7, dtype=np.uint8),
        "x_test": random.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "y_test": np.arange(3, dtype=np.uint8),
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    splits = shipped_job().load_data("mnist", tmp_path)
    assert splits["train"][0].dtype == np.uint8
    for array, name in zip([*splits["train"], *splits["validation"]], arrays, strict=True):
        np.testing.assert_array_equal(array, arrays[name])


def test_mnist_runs_no_code_from_its_file(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "mnist.npz", x_train=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        shipped_job().load_data("mnist", tmp_path)


def test_digits_are_as_large_as_mnists_and_split_alike_each_time() -> None:
    import numpy as np

    splits, again = shipped_job().load_digits(), shipped_job().load_digits()
    for name, count in (("train", DIGITS_TRAIN), ("validation", DIGITS_TEST)):
        x, y = splits[name]
        assert (x.shape, x.dtype, len(y)) == ((count, 28, 28), np.uint8, count)
        assert (x.min(), x.max()) == (0, 255)
        np.testing.assert_array_equal(x, again[name][0])
        # Stratified: each of the ten digits is a tenth, or nearly.
        assert np.bincount(y).min() / count > 0.09


def test_data_of_another_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are mnist and digits"):
        shipped_job().load_data("cifar", tmp_path)


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    from truba_runner.training.keras.batches.splits import epoch_order

    orders = {(seed, epoch): epoch_order(seed, epoch, 100).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert orders[1, 1] == epoch_order(1, 1, 100).tolist()


def test_the_plan_gives_every_example_once_an_epoch_in_that_order() -> None:
    import numpy as np

    from truba_runner.training.keras.batches.splits import DataPlan, epoch_order

    x = np.arange(10)
    plan = DataPlan((x, x * 2), examples=10, batch_size=4, devices=1, seed=5)
    assert plan.steps == int(plan.dataset.cardinality()) == 3
    for epoch in (3, 0):
        plan.begin(epoch)
        given = [(x.numpy(), y.numpy()) for x, y in plan.dataset]
        assert [len(x) for x, _ in given] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in given]), epoch_order(5, epoch, 10))
        np.testing.assert_array_equal(np.concatenate([y for _, y in given]), epoch_order(5, epoch, 10) * 2)


def test_every_training_batch_divides_among_the_devices_and_evaluation_leaves_nothing_out() -> None:
    import numpy as np

    from truba_runner.training.keras.batches.splits import DataPlan

    x = np.arange(11)
    shuffled = DataPlan((x, x), examples=11, batch_size=4, devices=2, seed=0)
    left_out = set()
    for epoch in range(8):
        shuffled.begin(epoch)
        given = [rows.numpy() for rows, _ in shuffled.dataset]
        assert [len(rows) for rows in given] == [4, 4, 2]
        left_out |= set(x) - set(np.concatenate(given))
    assert len(left_out) > 1
    for batch_size, sizes in ((4, [4, 4, 3]), (64, [10, 1])):
        ordered = DataPlan((x, x), examples=11, batch_size=batch_size, devices=2)
        given = [rows.numpy() for rows, _ in ordered.dataset]
        assert ([len(rows) for rows in given], ordered.steps) == (sizes, len(sizes))
        np.testing.assert_array_equal(np.concatenate(given), x)


def test_fit_goes_through_another_order_each_epoch(folder: Path, job: ModuleType, monkeypatch: Any) -> None:
    from truba_runner.training.keras.batches import splits as keras_data

    begun = []
    monkeypatch.setattr(keras_data.DataPlan, "begin", lambda self, epoch: begun.append(epoch))
    still = train(context(folder / "still", job, train={"epochs": 2}))
    monkeypatch.undo()
    shuffled = train(context(folder / "shuffled", job, train={"epochs": 2}))
    assert begun == [0, 1]
    assert still["weights_sha256"] != shuffled["weights_sha256"]


def test_mappings_of_arrays_go_through_as_such() -> None:
    import numpy as np

    from truba_runner.training.keras.batches.splits import DataPlan

    plan = DataPlan(({"a": np.arange(3), "b": np.ones((3, 2))}, np.zeros(3)), examples=3, batch_size=2, devices=1)
    shapes = [{name: tuple(array.shape) for name, array in x.items()} for x, _ in plan.dataset]
    assert shapes == [{"a": (2,), "b": (2, 2)}, {"a": (1,), "b": (1, 2)}]


def test_fewer_examples_than_devices_are_refused() -> None:
    import numpy as np

    from truba_runner.training.keras.batches.splits import DataPlan

    with pytest.raises(Failed, match="4 devices need at least 4 examples"):
        DataPlan((np.zeros(3), np.zeros(3)), examples=3, batch_size=4, devices=4)


# -- settings --------------------------------------------------------------------------------------------------


def test_the_config_decides_how_steps_are_run(folder: Path, job: ModuleType) -> None:
    from truba_runner.training.keras.model import build_model

    for compiled in (False, True):
        given = context(folder / "how", job, job={"options": {"compiled": compiled}}, train={"steps_per_execution": 7})
        for jit_compile in (True, False):
            model = build_model(given, jit_compile)
            assert (model.steps_per_execution, model.jit_compile) == (7, jit_compile)


def test_optimizer_by_name_takes_the_learning_rate() -> None:
    from truba_runner.training.keras.model import make_optimizer

    made = make_optimizer(schema.Train(optimizer="rmsprop", learning_rate=0.25))
    assert (type(made).__name__, float(made.learning_rate)) == ("RMSprop", 0.25)
    assert float(make_optimizer(schema.Train(optimizer="adam")).learning_rate) == pytest.approx(0.001)


def test_optimizer_as_an_object_keeps_its_settings_and_the_learning_rate_of_train_wins() -> None:
    from truba_runner.training.keras.model import make_optimizer

    given = {"class_name": "SGD", "config": {"momentum": 0.5, "learning_rate": 0.125}}
    made = make_optimizer(schema.Train(optimizer=given))
    assert (made.momentum, float(made.learning_rate)) == (0.5, 0.125)
    made = make_optimizer(schema.Train(optimizer=given, learning_rate=0.25))
    assert (made.momentum, float(made.learning_rate)) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adm", "train.optimizer: Keras has no 'adm'. Did you mean .*Adam"),
        ({"class_name": "SGD", "config": {"momentun": 1}}, "train.optimizer: .*SGD.*momentun"),
    ],
)
def test_an_optimizer_that_keras_cannot_make_is_refused(optimizer: Any, message: str) -> None:
    from truba_runner.training.keras.model import make_optimizer

    with pytest.raises(Failed, match=message):
        make_optimizer(schema.Train(optimizer=optimizer))


def test_loss_metrics_and_optimizer_as_objects_are_trained_with(folder: Path, job: ModuleType) -> None:
    settings = {
        "loss": {"class_name": "SparseCategoricalCrossentropy", "config": {"ignore_class": 3}},
        "metrics": [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "acc"}}],
        "optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.5}},
    }
    given = context(folder / "objects", job, train=settings)
    assert set(train(given)["metrics"]) == {"loss", "acc", "val_loss", "val_acc"}
    header, row = (given.run.path / "history.csv").read_text().splitlines()
    assert float(dict(zip(header.split(","), row.split(","), strict=True))["learning_rate"]) == 0.5


def test_a_model_that_the_job_compiled_keeps_its_optimizer(
    folder: Path, job: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"options": {"compiled": True}}
    for train_settings, rate in (({"loss": None, "metrics": []}, 0.125), ({"learning_rate": 0.25}, 0.25)):
        given = context(folder / f"compiled-{rate}", job, job=options, train=train_settings)
        assert "accuracy" in train(given)["metrics"]
        assert float((given.run.path / "history.csv").read_text().splitlines()[1].split(",")[-2]) == rate
        assert "train.metrics and train.loss_weights are not used" in capsys.readouterr().out


def test_options_reach_the_jobs_functions(folder: Path, job: ModuleType) -> None:
    sections = {"job": {"options": {"units": 4}}, "data": {"options": {"train": 64, "validation": 9, "test": 20}}}
    result = train(context(folder / "options", job, **sections))
    assert result["parameters"] == 784 * 4 + 4 + 4 * 10 + 10
    assert result["examples"] == {"train": 64, "validation": 9, "test": 20}


def test_a_test_split_is_what_is_evaluated_and_predicted(folder: Path, job: ModuleType) -> None:
    import numpy as np

    given = context(folder / "held-out", job, data={"options": {"test": 20}})
    metrics = train(given)["metrics"]
    assert metrics["test_loss"] != metrics["val_loss"]
    assert len(np.load(given.run.path / "predictions.npy")) == 20


def test_without_validation_and_test_there_is_nothing_to_evaluate(folder: Path, job: ModuleType) -> None:
    given = context(folder / "train-only", job, data={"options": {"validation": 0}})
    result = train(given)
    assert set(result["metrics"]) == {"loss", "accuracy"}
    assert "predictions" not in result and not (given.run.path / "predictions.npy").exists()


def test_what_is_switched_off_is_not_written(folder: Path, job: ModuleType) -> None:
    given = context(folder / "off", job)
    assert "model" not in train(given)
    assert not given.run.tensorboard.exists() and not (given.run.path / "model.keras").exists()


def test_a_disk_that_refuses_the_history_stops_no_training(
    folder: Path, job: ModuleType, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: RunDir, rows: Any, durable: bool) -> None:
        raise OSError("Disk quota exceeded")

    monkeypatch.setattr(RunDir, "write_history", refuse)
    assert train(context(folder / "quota", job))["epochs"] == 1
    assert "history.csv could not be written (Disk quota exceeded)" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_costs_no_training_and_leaves_no_half_of_a_model(
    tmp_path: Path, job: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    write, refused = checkpoints._write_whole, []

    def full_for_the_last(path: Path, content: Any) -> None:
        if path.name == "checkpoint-000002-000000000.ckpt" and not refused:
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    def half(model: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    settings: dict[str, Any] = {"train": {"epochs": 2, "batch_size": 32}, "checkpoint": {"save_model": True}}
    given = context(tmp_path, job, **settings)
    keras.utils.clear_session()  # Each start numbers its layers as a process of its own would.
    with monkeypatch.context() as full:
        full.setattr(checkpoints, "_write_whole", full_for_the_last)
        full.setattr(keras.Model, "save", half)
        with pytest.raises(OSError, match="No space"):
            train(given)
    assert refused and not list(given.run.path.glob("*.keras")) and not list(given.run.path.glob(".*"))
    again = context(tmp_path, job, **settings)
    keras.utils.clear_session()
    result = train(again)
    assert again.progress.steps == [], "nothing is trained again"  # type: ignore[attr-defined]
    assert (result["epochs"], result["steps"]) == (2, 20) and (given.run.path / "model.keras").exists()
    assert [getattr(again.progress.record, key) for key in ("epoch", "step", "steps_per_epoch")] == [2, 10, 10]


# -- what a user can do wrong ----------------------------------------------------------------------------------


def broken(job: ModuleType, **functions: Any) -> Any:
    given = {"build_model": job.build_model, "load_data": job.load_data, **functions}
    return SimpleNamespace(__file__="jobs/mine.py", **{name: item for name, item in given.items() if item})


def zeros(*counts: int) -> tuple[Any, ...]:
    import numpy as np

    return tuple(np.zeros(count) for count in counts)


@pytest.mark.parametrize(
    ("functions", "sections", "message"),
    [
        ({"build_model": None}, {}, "jobs/mine.py has no function build_model"),
        ({"load_data": None}, {}, "jobs/mine.py has no function load_data"),
        ({"build_model": lambda: 3}, {}, "build_model in jobs/mine.py returned a int, not a keras.Model"),
        ({}, {"train": {"loss": None}}, "train.loss is not set. Set it, for example"),
        ({}, {"job": {"options": {"unit": 4}}}, "job.options.unit: .*takes no such option. Did you mean units?"),
        ({}, {"data": {"options": {"name": "x"}}}, "data.options.name: load_data .*takes no such option"),
        ({"build_model": lambda units: 3}, {}, "job.options.units is missing"),
        ({"load_data": lambda name, folder: [1]}, {}, "returned list. It has to return a dict with the key train"),
        ({"load_data": lambda name, folder: {"test": 1}}, {}, "returned the keys test. It has to return"),
        ({"load_data": lambda name, folder: {"train": 1, "dev": 2}}, {}, "returned the keys train, dev. It has"),
        ({"load_data": lambda name, folder: {"train": [1, 2]}}, {}, "returned for train a list. It has to be a pair"),
        ({"load_data": lambda name, folder: {"train": ([1], [0])}}, {}, "something other than NumPy arrays for train"),
        ({"load_data": lambda name, folder: {"train": zeros(2, 3)}}, {}, "arrays of 2 and 3 examples for train"),
        ({"load_data": lambda name, folder: {"train": zeros(0, 0)}}, {}, "load_data returned no examples for train"),
    ],
)
def test_a_wrong_job_is_told_in_one_paragraph(
    tmp_path: Path, job: ModuleType, functions: Any, sections: Any, message: str
) -> None:
    with pytest.raises(Failed, match=message) as error:
        train(context(tmp_path, broken(job, **functions), **sections))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["build_model", "load_data"])
def test_what_the_users_code_raises_goes_through_untouched(tmp_path: Path, job: ModuleType, name: str) -> None:
    mine = TypeError("mine")

    def raises(**anything: Any) -> None:
        raise mine

    with pytest.raises(TypeError) as error:
        train(context(tmp_path, broken(job, **{name: raises})))
    assert error.value is mine


def test_gpus_that_tensorflow_cannot_use_fail_the_job(tmp_path: Path, job: ModuleType, monkeypatch: Any) -> None:
    from truba_runner.training import missing_gpus
    from truba_runner.training.keras.devices import devices

    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(missing_gpus, "NVIDIA_DRIVER", driver)
    with pytest.raises(Failed, match="1 GPUs a node were requested .*--nv.*resources.gpus=0"):
        train(context(tmp_path, job, resources={"gpus": 1}))
    assert devices.pick_devices(0) == ["CPU:0"]


def test_devices_that_cannot_be_made_any_more_are_explained(digits: SimpleNamespace) -> None:
    from truba_runner.training.keras.devices.devices import pick_devices

    with pytest.raises(Failed, match="TensorFlow was in use before its 7 devices could be set up"):
        pick_devices(7)


# -- imports ---------------------------------------------------------------------------------------------------


def test_loading_the_backend_imports_no_framework() -> None:
    code = (
        "import sys, truba_runner.training.backend as b; b.load('keras');"
        "print(*{'tensorflow', 'keras', 'numpy', 'hydra', 'submitit'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_tensorflows_start_up_lines_are_off_unless_the_user_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("truba_runner.training.keras.train")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    importlib.reload(module)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    importlib.reload(module)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
