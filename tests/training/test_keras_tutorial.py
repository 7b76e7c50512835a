"""The tutorial's rows beyond its digits, each by config and on small data. As a script it trains on two devices."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from test_keras import ROOT, context, small_job, train

from truba_runner.code import job_module
from truba_runner.errors import Failed
from truba_runner.training import backend

TEXT = yaml.safe_load((ROOT / "conf/experiment/text_classification.yaml").read_text())
FRAUD = yaml.safe_load((ROOT / "conf/experiment/fraud.yaml").read_text())
SMALL_TEXT = {"max_tokens": 200, "units": 16, "sequence_length": 60}


def shipped(name: str) -> ModuleType:
    return job_module.load(ROOT / "jobs" / f"{name}.py")


def text(folder: Path, mode: str, **sections: Any) -> backend.Context:
    values: dict[str, Any] = {
        "job": {"module": "text_classification", "options": SMALL_TEXT},
        "data": {"name": "reviews", "preprocessing": mode, "options": {"reviews": 200}},
        "train": {**TEXT["train"], "epochs": 2},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    return context(folder, shipped("text_classification"), **values)


def job_of(job: ModuleType, load_data: Callable[..., Any], **functions: Any) -> Any:
    return SimpleNamespace(
        __file__="jobs/mine.py", **{"build_model": job.build_model, "load_data": load_data, **functions}
    )


def history(given: backend.Context) -> list[dict[str, str]]:
    with (given.run.path / "history.csv").open() as file:
        return list(csv.DictReader(file))


def logged(given: backend.Context) -> tuple[dict[str, Any], str]:
    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        result = train(given)
    return result, log.getvalue()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def job(folder: Path) -> ModuleType:
    return small_job(folder)


# -- text: preprocessing inside the model or ahead of it -------------------------------------------------------


@pytest.fixture(scope="module")
def texts(folder: Path) -> SimpleNamespace:
    made = {}
    for mode in ("async", "model"):
        # What takes text is compiled in no case.
        settings = {"jit_compile": mode == "model"}
        given = text(folder / mode, mode, checkpoint={"save_model": True, "best_model": True}, train=settings)
        result, log = logged(given)
        made[mode] = SimpleNamespace(path=given.run.path, result=result, log=log, rows=history(given))
    return SimpleNamespace(ahead=made["async"], inside=made["model"])


def test_both_places_of_preprocessing_train_the_same_weights_bit_for_bit(texts: SimpleNamespace) -> None:
    assert texts.ahead.result["weights_sha256"] == texts.inside.result["weights_sha256"]
    assert texts.ahead.result["metrics"] == texts.inside.result["metrics"]


def test_the_switch_decides_what_the_network_is_given(texts: SimpleNamespace) -> None:
    assert "text_vectorization" in texts.inside.log and "text_vectorization" not in texts.ahead.log
    # What is inside is shown with all of its layers, as in the tutorial.
    assert texts.inside.log.count("(Conv1D)") == 2
    assert "XLA cannot compile a network that takes text" in texts.inside.log
    assert "XLA" not in texts.ahead.log


def test_both_save_models_that_take_text(texts: SimpleNamespace) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    held_out, _ = shipped("text_classification").load_data("reviews", Path(), 200)["test"]
    for made in (texts.ahead, texts.inside):
        predictions = np.load(made.path / "predictions.npy")
        for file in ("model.keras", "checkpoints/models/best.keras"):
            saved = keras.models.load_model(made.path / file)
            answers = saved.predict(tf.constant(held_out), verbose=0)
            # The best epoch is not always the last.
            if file == "model.keras" or min(made.rows, key=lambda row: float(row["val_loss"])) is made.rows[-1]:
                np.testing.assert_allclose(answers, predictions, atol=1e-5)


def test_accuracy_precision_and_recall_are_in_training_and_validation(texts: SimpleNamespace) -> None:
    names = {"loss", "accuracy", "precision", "recall"}
    wanted = {*names, *(f"val_{name}" for name in names)}
    assert wanted <= set(texts.ahead.rows[0])
    assert {*wanted, *(f"test_{name}" for name in names)} == set(texts.ahead.result["metrics"])


def test_the_text_network_learns(folder: Path) -> None:
    settings = {"epochs": 6, "optimizer": {"class_name": "Adam", "config": {"learning_rate": 0.005}}}
    given = text(folder / "learns", "async", train=settings, data={"options": {"reviews": 400}})
    assert train(given)["metrics"]["test_accuracy"] > 0.8


def test_the_learning_curves_are_drawn(texts: SimpleNamespace) -> None:
    pytest.importorskip("matplotlib")
    assert (texts.ahead.path / "plots" / "learning_curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_async_batches_are_numbers_before_the_network_sees_them(folder: Path) -> None:
    import numpy as np
    import tensorflow as tf

    from truba_runner.training.keras.batches.inputs import make_plans
    from truba_runner.training.keras.batches.preprocessing import add_preprocessing
    from truba_runner.training.keras.batches.splits import load_splits

    types = {}
    for mode in ("async", "model"):
        given = text(folder / f"batches-{mode}", mode)
        splits = load_splits(given)
        plans = make_plans(given, splits, 1)
        preprocessing = add_preprocessing(given, splits, plans, 1)
        types[mode] = {plan.dataset.element_spec[0].dtype for plan in plans.values()}
        x, y = next(iter(plans["validation"].dataset))
        np.testing.assert_array_equal(y, splits["validation"][1][:32])
        if mode == "async":
            np.testing.assert_array_equal(x, preprocessing.layer(splits["validation"][0][:32]))
        # It has learnt from the training texts alone.
        adapted = given.job.build_preprocessing(splits["train"][0], max_tokens=200)
        assert preprocessing.layer.get_vocabulary() == adapted.get_vocabulary()
    assert types == {"async": {tf.int64}, "model": {tf.string}}


def test_reviews_are_read_from_folders_and_straight_from_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shipped("text_classification")
    written = {"train": (20, 0), "test": (10, 1)}

    def made(count: int, seed: int) -> tuple[list[str], list[int]]:
        texts, labels = job.make_reviews(count, seed)
        return [f"{text} Café 5/10 ½" for text in texts], labels

    source = tmp_path / "source"
    for part, (count, seed) in written.items():
        for number, (content, label) in enumerate(zip(*made(count, seed), strict=True)):
            file = source / "aclImdb" / part / ("pos" if label else "neg") / f"{number:02}_7.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    # What the real archive has beside them is not training data.
    (source / "aclImdb" / "train" / "unsup").mkdir()
    (source / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("neither")
    (source / "aclImdb" / "README").write_text("about")
    staged = tmp_path / "staged"
    staged.mkdir()
    with tarfile.open(staged / "aclImdb_v1.tar.gz", "w:gz") as archive:
        archive.add(source / "aclImdb", "aclImdb")
    # Whatever the node's own encoding.
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")
    for place in (source, staged):
        for part, (count, seed) in written.items():
            assert job.read_texts(place, "aclImdb", part) == made(count, seed)
    splits = job.load_data("aclImdb", staged)
    assert {name: len(x) for name, (x, _) in splits.items()} == {"train": 16, "validation": 4, "test": 10}
    assert sorted([*splits["train"][0], *splits["validation"][0]]) == sorted(made(20, 0)[0])
    # Files lie sorted by label; the two splits must not.
    assert all(0 < splits[name][1].mean() < 1 for name in ("train", "validation"))
    assert list(staged.iterdir()) == [staged / "aclImdb_v1.tar.gz"]


def test_an_archive_or_a_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "aclImdb_v1.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match="no texts in train/pos and train/neg"):
        shipped("text_classification").load_data("aclImdb", tmp_path)
    (tmp_path / "aclImdb" / "train" / "pos").mkdir(parents=True)
    with pytest.raises(ValueError, match="aclImdb/train has no texts in pos and neg"):
        shipped("text_classification").load_data("aclImdb", tmp_path)


# -- fraud: classes that are not alike -------------------------------------------------------------------------


def fraud(folder: Path, **sections: Any) -> backend.Context:
    values: dict[str, Any] = {
        "job": {"module": "fraud", "options": {"units": 32}},
        "data": {"name": "payments", "preprocessing": "model"},
        "train": {**FRAUD["train"], "epochs": 4, "batch_size": 512},
        "checkpoint": {**FRAUD["checkpoint"], "save_model": True},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    return context(folder, shipped("fraud"), **values)


def test_class_weights_find_the_fraud_that_is_else_passed_over(folder: Path) -> None:
    found, log = logged(fraud(folder / "weighted"))
    passed_over, _ = logged(fraud(folder / "unweighted", train={"class_weight": None}))
    assert found["metrics"]["test_recall"] > 0.7 and found["metrics"]["test_pr_auc"] > 0.5
    assert found["metrics"]["test_recall"] > passed_over["metrics"]["test_recall"]
    _, labels = shipped("fraud").load_data("payments", Path())["train"]
    weights = {label: len(labels) / (2 * int((labels == label).sum())) for label in (0, 1)}
    assert f"class weights: 0: {weights[0]:.4g}, 1: {weights[1]:.4g}" in log


def test_the_real_files_form_is_read_and_split_evenly(tmp_path: Path) -> None:
    import numpy as np

    job = shipped("fraud")
    made = sys.modules[job.make_csv.__module__].make_csv(2000, seed=3)
    header, first, *_ = made.splitlines()
    assert header.startswith('"Time","V1","V2",') and header.endswith('"V28","Amount","Class"')
    assert first.endswith(',"0"') and first.count(",") == 30
    (tmp_path / "creditcard.csv").write_text(made)
    splits = job.load_data("creditcard", tmp_path)
    assert {name: x.shape for name, (x, _) in splits.items()} == {
        "train": (1200, 30),
        "validation": (400, 30),
        "test": (400, 30),
    }
    shares = [y.mean() for _, y in splits.values()]
    assert max(shares) - min(shares) < 0.003 < min(shares)
    row = np.array([float(value.strip('"')) for value in first.split(",")], dtype=np.float32)
    rows = np.concatenate([x for x, _ in splits.values()])
    assert (rows == row[:-1]).all(axis=1).sum() == 1
    # A run that goes on reads them again.
    for name, (x, _) in job.load_data("creditcard", tmp_path).items():
        np.testing.assert_array_equal(x, splits[name][0])
    with pytest.raises(ValueError, match="expected are Time, V1 to V28"):
        job.read_csv(["a,b", "1,2"])


# -- inputs ----------------------------------------------------------------------------------------------------


def ordered_digits(job: ModuleType) -> tuple[Any, Any, Any, Any]:
    splits = job.load_data("digits", Path())
    return (*splits["train"], *splits["validation"])


def epoch_datasets(job: ModuleType, batch_size: int | None) -> Callable[..., Any]:
    """A job's `load_data`: the same examples in the same order as the backend's own plan for arrays."""

    def load_data(name: str, folder: Path) -> dict[str, Any]:
        import tensorflow as tf

        from truba_runner.training.keras.batches.splits import epoch_order

        x, y, v, w = ordered_digits(job)

        def epoch_of(epoch: int) -> Any:
            order = epoch_order(0, epoch, len(x))
            dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
            return dataset.batch(batch_size) if batch_size else dataset

        return {"train": epoch_of, "validation": (v, w)}

    return load_data


@pytest.fixture(scope="module")
def from_arrays(folder: Path, job: ModuleType) -> dict[str, Any]:
    return train(context(folder / "arrays", job, train={"epochs": 2, "batch_size": 64}))


@pytest.mark.parametrize(("own", "batch_size"), [(64, None), (None, 64)])
def test_a_function_of_the_epoch_gives_each_epoch_its_dataset(
    folder: Path, job: ModuleType, from_arrays: dict[str, Any], own: int | None, batch_size: int | None
) -> None:
    settings = {"epochs": 2, "batch_size": batch_size}
    given = context(folder / f"epochs-{own}", job_of(job, epoch_datasets(job, own)), train=settings)
    result, log = logged(given)
    assert result["weights_sha256"] == from_arrays["weights_sha256"]
    assert (result["steps"], result["examples"]) == (10, {"validation": 71})
    # How many steps there are is known once an epoch is over.
    assert "epoch 1/2  step 5/5  " in log and "epoch 2/2  step 5/5  " in log
    assert given.run.progress().steps_per_epoch == 5


def test_a_shuffled_dataset_of_an_epoch_can_be_had_again(job: ModuleType) -> None:
    import keras
    import tensorflow as tf

    from truba_runner.config.schema import Train
    from truba_runner.training.keras.batches.streams import StreamPlan

    def labels(epochs: list[int]) -> list[list[int]]:
        keras.utils.set_random_seed(0)
        plan = StreamPlan(Train(), "train", epoch_of, 1, 64)
        given = []
        for epoch in epochs:
            plan.begin(epoch)
            given.append([int(label) for _, batch in plan.dataset for label in batch])
        return given

    x, y, *_ = ordered_digits(job)
    # As docs/keras.md writes it.
    epoch_of = lambda epoch: tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=epoch).batch(64)  # noqa: E731
    first, second = labels([0, 1])
    assert labels([1]) == [second] and first != second and sorted(first) == sorted(y)


@pytest.fixture(scope="module")
def in_order(folder: Path, job: ModuleType) -> dict[str, dict[str, Any]]:
    """The same 300 digits in the same order, as each kind of input that has an order of its own."""
    import keras
    import tensorflow as tf

    x, y, v, w = ordered_digits(job)

    def dataset(x: Any, y: Any) -> Any:
        return tf.data.Dataset.from_tensor_slices((x, y))

    def batches() -> Iterator[Any]:
        for start in range(0, len(x), 60):
            yield x[start : start + 60], y[start : start + 60]

    def examples() -> Iterator[Any]:
        yield from zip(x, y, strict=True)

    inputs = {
        "batched Dataset": ({"train": dataset(x, y).batch(60), "validation": dataset(v, w).batch(10)}, None),
        "Dataset of examples": ({"train": dataset(x, y), "validation": dataset(v, w)}, 60),
        "generator of batches": ({"train": batches, "validation": lambda: iter([(v, w)])}, None),
        "generator of examples": ({"train": examples, "validation": (v, w)}, 60),
    }
    results = {}
    for name, (splits, size) in inputs.items():
        mine = job_of(job, lambda name, folder, splits=splits: splits)
        results[name] = train(context(folder / name, mine, train={"epochs": 2, "batch_size": size}))
    keras.utils.set_random_seed(0)
    model = job.build_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=60, epochs=2, shuffle=False, verbose=0)
    results["keras"] = {"weights": model.get_weights(), **model.evaluate(v, w, verbose=0, return_dict=True)}
    return results


def test_datasets_and_generators_train_what_plain_keras_trains(in_order: dict[str, dict[str, Any]]) -> None:
    plain = in_order.pop("keras")
    assert len({result["weights_sha256"] for result in in_order.values()}) == 1, in_order
    for result in in_order.values():
        assert result["steps"] == 10
        for name in ("loss", "accuracy"):
            assert result["metrics"][f"val_{name}"] == pytest.approx(plain[name], rel=1e-4)


def py_dataset(x: Any, y: Any, size: int, seen: list[int], meet: threading.Barrier | None, **settings: Any) -> Any:
    """`meet`: each batch but the first two, which are fetched for their shapes, waits here for another."""
    import keras

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return math.ceil(len(x) / size)

        def __getitem__(self, number: int) -> Any:
            seen.append(number)
            if meet and len(seen) > 2:
                with contextlib.suppress(threading.BrokenBarrierError):
                    meet.wait(240)
            return x[number * size : (number + 1) * size], y[number * size : (number + 1) * size]

    return Batches(**settings)


def test_a_pydatasets_batches_come_in_an_order_of_the_seed_and_the_epoch(folder: Path, job: ModuleType) -> None:
    from truba_runner.training.keras.batches.splits import epoch_order

    x, y, v, w = ordered_digits(job)
    meet = threading.Barrier(2)
    hashes, seen = [], {1: [], 3: []}
    for workers in (1, 3):
        mine = job_of(job, lambda name, folder, workers=workers: {
            "train": py_dataset(x, y, 50, seen[workers], meet if workers > 1 else None, workers=workers),
            "validation": py_dataset(v, w, 16, [], None),
        })  # fmt: skip
        result = train(context(folder / f"py-{workers}", mine, train={"epochs": 2, "batch_size": None}))
        hashes.append(result["weights_sha256"])
        assert result["steps"] == 12
    assert hashes[0] == hashes[1]
    assert not meet.broken, "several workers fetch at a time"
    orders = [number for epoch in (0, 1) for number in epoch_order(0, epoch, 6)]
    # Before the epochs two batches were fetched for their shapes.
    assert seen[1][-12:] == orders


@pytest.mark.parametrize(
    ("split", "train_settings", "message"),
    [
        (lambda tf, x, y: tf.batch(8), {"batch_size": 8}, "returned batches for train.*Set train.batch_size=null"),
        (lambda tf, x, y: tf, {"batch_size": None}, "single examples for train, not batches. Set train.batch_size"),
        (lambda tf, x, y: tf.batch(8), {"batch_size": None, "batch_scaling": "per_replica"}, "batch_scaling=global"),
        (lambda tf, x, y: tf.batch(8).repeat(), {"batch_size": None}, r"never ends.*train\.steps_per_epoch=N"),
        (
            lambda tf, x, y: (pair for pair in [(x, y)]),
            {"batch_size": None},
            "generator, which can be read only once",
        ),
        (lambda tf, x, y: lambda: iter([]), {"batch_size": None}, "yields nothing"),
        (
            lambda tf, x, y: lambda: iter([[x, y]]),
            {"batch_size": None},
            r"yields a list; it has to yield tuples \(x, y\)",
        ),
        (lambda tf, x, y: tf.batch(8), {"batch_size": None, "class_weight": "balanced"}, "no single array of them"),
        (lambda tf, x, y: (x, y), {"class_weight": "equal"}, "train.class_weight=equal: it must be balanced, or"),
        (lambda tf, x, y: (x, y), {"class_weight": {"cat": 2}}, "train.class_weight=.*Write it as {0: 1.0, 1: 50.0}"),
    ],
)
def test_inputs_that_cannot_be_gone_through_are_explained(
    tmp_path: Path, job: ModuleType, split: Any, train_settings: Any, message: str
) -> None:
    import tensorflow as tf

    x, y, *_ = ordered_digits(job)
    given = split(tf.data.Dataset.from_tensor_slices((x, y)), x, y)
    mine = job_of(job, lambda name, folder: {"train": given})
    with pytest.raises(Failed, match=message) as error:
        train(context(tmp_path, mine, train=train_settings))
    assert "\n" not in str(error.value)


# -- callbacks -------------------------------------------------------------------------------------------------

CALLBACKS = """
import keras

class Counts(keras.callbacks.Callback):
    def __init__(self, file="counted"):
        super().__init__()
        self.file, self.epochs = file, 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1

    def on_train_end(self, logs=None):
        with open(self.file, "w") as file:
            file.write(str(self.epochs))

def not_a_callback():
    return 3
"""


def test_callbacks_by_name_and_by_import_path_with_arguments(folder: Path, job: ModuleType) -> None:
    (folder / "tells.py").write_text(CALLBACKS)
    given = context(
        folder / "callbacks",
        job,
        train={
            "epochs": 4,
            "callbacks": [
                {"class_name": "tells.Counts", "config": {"file": "mine"}},
                "tells.Counts",
                # No metric falls by 100: the rate is divided after the first epoch, the run stops after the third.
                {
                    "class_name": "ReduceLROnPlateau",
                    "config": {"monitor": "loss", "patience": 1, "min_delta": 100, "factor": 0.1},
                },
                {"class_name": "EarlyStopping", "config": {"monitor": "val_loss", "patience": 2, "min_delta": 100}},
            ],
        },
    )
    assert train(given)["epochs"] == 3
    assert ((given.run.path / "mine").read_text(), (given.run.path / "counted").read_text()) == ("3", "3")
    rates = [float(row["learning_rate"]) for row in history(given)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4])


def test_a_callback_of_the_jobs_own_module_is_found_by_its_name(tmp_path: Path) -> None:
    from truba_runner.training.keras.callbacks import make_callback

    (tmp_path / "mine.py").write_text(CALLBACKS)
    module = job_module.load(tmp_path / "mine.py")
    for name in ("Counts", "mine.Counts"):
        assert isinstance(make_callback(context(tmp_path, module), 0, name), module.Counts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("EarlyStoping", r"train.callbacks\[0\]: Keras has no 'EarlyStoping'. Did you mean EarlyStopping"),
        ({"class_name": "EarlyStopping", "config": {"patience_": 1}}, "EarlyStopping cannot be made with.*patience_"),
        ("no_such_module.Tell", "no_such_module.Tell cannot be imported: No module named"),
        ("keras.callbacks.EarlyStoping", "keras.callbacks has no EarlyStoping. Did you mean EarlyStopping"),
        ("builtins.dict", "made a dict, which is not a keras.callbacks.Callback"),
        ({"name": "EarlyStopping"}, "write it as {class_name: EarlyStopping"),
        (3, "write it as"),
    ],
)
def test_callbacks_that_cannot_be_made_are_explained(tmp_path: Path, job: ModuleType, given: Any, message: str) -> None:
    from truba_runner.training.keras.callbacks import make_callback

    with pytest.raises(Failed, match=message) as error:
        make_callback(context(tmp_path, job), 0, given)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def kept(folder: Path, job: ModuleType) -> backend.Context:
    # The rate is so high that a later epoch is not always a better one.
    optimizer = {"class_name": "SGD", "config": {"learning_rate": 3.0}}
    checkpoint = {"model_each_epoch": True, "best_model": True}
    given = context(folder / "kept", job, train={"epochs": 5, "optimizer": optimizer}, checkpoint=checkpoint)
    train(given)
    return given


def test_a_model_is_kept_of_each_epoch_and_of_the_best(kept: backend.Context, job: ModuleType) -> None:
    import keras

    files = {path.name for path in kept.run.models.iterdir()}
    assert files == {*(f"model_{epoch}.keras" for epoch in range(1, 6)), "best.keras"}
    losses = [float(row["val_loss"]) for row in history(kept)]
    _, _, v, w = ordered_digits(job)

    def loss(name: str) -> float:
        return float(keras.models.load_model(kept.run.models / name).evaluate(v, w, verbose=0)[0])

    for epoch in (1, 3, 5):
        assert loss(f"model_{epoch}.keras") == pytest.approx(losses[epoch - 1], rel=1e-4)
    assert min(losses) != losses[-1]
    assert loss("best.keras") == pytest.approx(min(losses), rel=1e-4)


def keeping(given: backend.Context, model: Any) -> Any:
    from truba_runner.training.keras.kept_models import kept_models
    from truba_runner.training.keras.saving import Saving

    return kept_models(given, Saving(given, model, None))


def small_model() -> Any:
    import keras

    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_the_best_is_remembered_across_a_resume_and_looks_at_its_own_metric(tmp_path: Path, job: ModuleType) -> None:
    saved: list[Path] = []
    model = small_model()
    model.save = lambda path: (saved.append(path), path.touch())
    checkpoint = {"best_model": True, "monitor": "val_accuracy", "mode": "max"}
    given = context(tmp_path, job, checkpoint=checkpoint)
    first = keeping(given, model)
    for epoch, accuracy in enumerate([float("nan"), 0.5, 0.4, 0.7]):
        first.on_epoch_end(epoch, {"val_accuracy": accuracy})
    assert len(saved) == 2
    resumed = keeping(given, model)
    resumed.set_state(json.loads(json.dumps(first.get_state())))
    for epoch, accuracy in enumerate([0.6, 0.8]):
        resumed.on_epoch_end(epoch, {"val_accuracy": accuracy})
    assert len(saved) == 3


def test_a_disk_that_refuses_a_model_and_a_metric_that_is_not_there_stop_no_training(
    tmp_path: Path, job: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        path.write_text("half of")
        raise OSError("Disk quota exceeded")

    given = context(tmp_path, job, checkpoint={"best_model": True, "model_each_epoch": True, "monitor": "val_los"})
    model = small_model()
    model.save = refuse
    callback = keeping(given, model)
    callback.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    told = capsys.readouterr().err
    assert "model_1 could not be saved (Disk quota exceeded); training continues" in told
    assert "checkpoint.monitor=val_los: no such metric. Did you mean val_loss" in told
    assert list(given.run.models.iterdir()) == []


# -- settings --------------------------------------------------------------------------------------------------


def test_losses_and_metrics_by_name(folder: Path, job: ModuleType) -> None:
    # Functions, classes in both spellings, and an object with arguments.
    metrics = ["acc", "sparse_categorical_crossentropy", "SparseTopKCategoricalAccuracy"]
    metrics.append({"class_name": "SparseTopKCategoricalAccuracy", "config": {"k": 2, "name": "top2"}})
    given = context(folder / "names", job, train={"loss": "SparseCategoricalCrossentropy", "metrics": metrics})
    found = train(given)["metrics"]
    assert {"acc", "sparse_categorical_crossentropy", "SparseTopKCategoricalAccuracy", "val_top2"} <= set(found)
    assert found["acc"] < found["top2"] < found["SparseTopKCategoricalAccuracy"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss": "sparse_categorical_crossentropi"},
            "train.loss: Keras has no .* mean .*sparse_categorical_crossentropy",
        ),
        ({"metrics": ["precison"]}, "train.metrics: Keras has no 'precison'. Did you mean precision"),
        ({"metrics": ["accurracy"]}, "train.metrics: Keras has no 'accurracy'. Did you mean accuracy or"),
        ({"metrics": [{"class_name": "Recal"}]}, "train.metrics: Keras has no 'Recal'. Did you mean Recall"),
        ({"loss": {"class_name": "MeanSquaredErorr"}}, "train.loss: Keras has no .* Did you mean MeanSquaredError"),
    ],
)
def test_a_misspelt_loss_or_metric_is_told_with_the_nearest(
    tmp_path: Path, job: ModuleType, settings: Any, message: str
) -> None:
    with pytest.raises(Failed, match=message):
        train(context(tmp_path, job, train=settings))


def test_mixed_precision_computes_in_half_and_keeps_whole_weights(folder: Path, job: ModuleType) -> None:
    import keras
    import numpy as np

    seen = []

    def build_model() -> Any:
        seen.append(keras.config.dtype_policy().name)
        return job.build_model()

    mine = job_of(job, job.load_data, build_model=build_model)
    # XLA too: the GPUs that compute in half precision are those that it is for.
    for policy, jit, kind in (("mixed_float16", False, np.float16), ("mixed_bfloat16", True, np.float32)):
        settings = {"mixed_precision": policy, "jit_compile": jit, "epochs": 2}
        given = context(folder / policy, mine, train=settings, checkpoint={"save_model": True})
        result = train(given)
        # 2 epochs of 10 steps; with mixed_float16 Keras leaves steps out whose gradients overflow.
        assert 15 <= result["steps"] <= 20 and result["metrics"]["accuracy"] > 0.2
        # bfloat16 has no form in NumPy's own files.
        assert np.load(given.run.path / "predictions.npy").dtype == kind
        saved = keras.models.load_model(given.run.path / "model.keras")
        assert saved.layers[-1].compute_dtype == policy.removeprefix("mixed_")
        assert {weight.dtype for weight in saved.get_weights()} == {np.dtype("float32")}
        assert keras.config.dtype_policy().name == "float32"
    assert seen == ["mixed_float16", "mixed_bfloat16"]


def test_the_policy_is_reset_when_the_job_raises(tmp_path: Path, job: ModuleType) -> None:
    import keras

    def build_model() -> Any:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(
            context(tmp_path, job_of(job, job.load_data, build_model=build_model), train={"mixed_precision": "float16"})
        )
    assert keras.config.dtype_policy().name == "float32"


def test_one_device_scales_nothing(tmp_path: Path, job: ModuleType) -> None:
    scaled = {"batch_scaling": "per_replica", "scale_learning_rate": True}
    given = context(tmp_path, job, train={"batch_size": 30, **scaled})
    assert train(given)["steps"] == 10
    assert [float(row["learning_rate"]) for row in history(given)] == pytest.approx([1e-3])


def test_a_schedule_has_no_rate_to_scale() -> None:
    import keras

    from truba_runner.config.schema import Train
    from truba_runner.training.keras.precision import scale_learning_rate

    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = SimpleNamespace(optimizer=keras.optimizers.SGD(schedule))
    with pytest.raises(Failed, match="follows a schedule"):
        scale_learning_rate(model, Train(batch_scaling="per_replica", scale_learning_rate=True), 2)


def test_preprocessing_that_does_not_fit_is_explained(tmp_path: Path, job: ModuleType) -> None:
    import keras

    no_layer = job_of(job, job.load_data, build_preprocessing=lambda inputs: 3)
    with pytest.raises(Failed, match="returned a int, not a keras.Layer"):
        train(context(tmp_path, no_layer))
    compiled = job_of(job, job.load_data, build_preprocessing=lambda inputs: keras.layers.Rescaling(2.0))
    given = context(tmp_path, compiled, job={"options": {"compiled": True}}, data={"preprocessing": "model"})
    with pytest.raises(Failed, match="compiled it already"):
        train(given)
    with pytest.raises(Failed, match="job.options.sequence_lenght: .*takes no such option"):
        train(text(tmp_path, "async", job={"options": {"sequence_lenght": 3}}))


# -- two devices, in a process of their own --------------------------------------------------------------------


def main(folder: Path) -> None:
    """Trains on two logical devices and prints what came of it."""
    job = small_job(folder)
    x, y, v, w = ordered_digits(job)
    two = {"gpus": 2}

    def batched(name: str, folder: Path) -> Any:
        import tensorflow as tf

        # 8 batches of 37 and one of 4, of which 36 and 4 divide among two devices.
        training = tf.data.Dataset.from_tensor_slices((x, y)).batch(37)
        return {"train": training, "validation": lambda: iter([(v[:31], w[:31]), (v[31:60], w[31:60])])}

    runs: dict[str, backend.Context] = {
        "kept": context(folder / "kept-batch", job, train={"batch_size": 32}, resources=two),
        "per_replica": context(
            folder / "per-replica",
            job,
            train={"batch_size": 16, "batch_scaling": "per_replica"},
            resources=two,
        ),
        "scaled": context(
            folder / "scaled",
            job,
            train={
                "batch_size": 32,
                "batch_scaling": "per_replica",
                "scale_learning_rate": True,
                "learning_rate": 0.01,
            },
            resources=two,
        ),
        "stream": context(folder / "stream", job_of(job, batched), train={"batch_size": None}, resources=two),
        "weighted": context(
            folder / "weighted",
            job,
            train={"class_weight": {0: 5.0}, "mixed_precision": "mixed_float16"},
            resources=two,
        ),
        "text-async": text(folder / "text-async", "async", resources=two),
        "text-model": text(folder / "text-model", "model", resources=two),
        "fraud": fraud(folder / "fraud", resources=two, train={"epochs": 1}),
    }
    results = {}
    for name, given in runs.items():
        result, log = logged(given)
        results[name] = {**result, "log": log, "rates": [float(row["learning_rate"]) for row in history(given)]}
    print(json.dumps(results))


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert all(result["devices"] == ["CPU:0", "CPU:1"] for result in results.values())
    return results


def test_the_batch_is_kept_or_grows_with_the_devices(two_devices: dict[str, Any]) -> None:
    # 16 for each of two devices are a batch of 32.
    assert two_devices["per_replica"]["weights_sha256"] == two_devices["kept"]["weights_sha256"]
    assert (two_devices["kept"]["steps"], two_devices["scaled"]["steps"]) == (10, 5)


def test_the_learning_rate_grows_only_where_the_config_asks_for_it(two_devices: dict[str, Any]) -> None:
    assert two_devices["per_replica"]["rates"] == pytest.approx([1e-3])
    assert two_devices["scaled"]["rates"] == pytest.approx([0.02])
    assert "learning rate 0.02: that of one device, times 2" in two_devices["scaled"]["log"]


def test_streams_divide_among_the_devices_and_evaluation_leaves_nothing_out(two_devices: dict[str, Any]) -> None:
    assert two_devices["stream"]["steps"] == 9
    # Of all 60, in fractions that 60 has and 59 or 58 have not.
    accuracy = two_devices["stream"]["metrics"]["val_accuracy"]
    assert accuracy * 60 == pytest.approx(round(accuracy * 60), abs=1e-4)


def test_text_trains_on_two_devices_wherever_it_was_asked_to_be_prepared(two_devices: dict[str, Any]) -> None:
    ahead, inside = two_devices["text-async"], two_devices["text-model"]
    assert ahead["weights_sha256"] == inside["weights_sha256"]
    assert "data.preprocessing is set to async: Keras cannot" in inside["log"] and "set to async" not in ahead["log"]


def test_weights_precision_and_numeric_preprocessing_work_on_two_devices(two_devices: dict[str, Any]) -> None:
    # The loss is that of heavier examples; the steps are fewer where gradients overflowed at first.
    assert two_devices["weighted"]["metrics"]["loss"] > 1.2 * two_devices["kept"]["metrics"]["loss"]
    assert 5 <= two_devices["weighted"]["steps"] <= 10
    assert "normalization" in two_devices["fraud"]["log"] and two_devices["fraud"]["metrics"]["test_recall"] >= 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
