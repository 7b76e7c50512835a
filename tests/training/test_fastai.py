"""A fastai job as its user sees it: what comes out of a recipe, and what is told where something is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import fastai_resume_runs as runs
import numpy as np
import pytest
from event_files_read import curves, told
from fastai_resume_runs import Ask

from truba_runner.runs.run_directory import RunDir

# Nothing by chance: neither order nor crop nor dropout, so that fastai's own calls train the same.
SAME_EACH_TIME = runs.JOB.replace(
    "item_tfms=RandomResizedCrop(item_size, min_scale=0.5), batch_tfms=aug_transforms(size=size, min_scale=0.7)",
    "item_tfms=Resize(size, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats), dl_type=InOrder",
).replace(
    "class Net", "class InOrder(TfmdDL):\n    def get_idxs(self):\n        return list(range(self.n))\n\nclass Net"
)


PICTURES = {"finish": {"plots": True}}


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(start: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: two stages, two finders, another size, all that is kept."""
    folder: Path = tmp_path_factory.mktemp("done") / "run"
    sections = {"checkpoint": {"save_model": True, "best_model": True}, **PICTURES}
    assert start(folder, sections=sections)["status"] == 0, log(folder)
    return folder


# -- what comes out --------------------------------------------------------------------------------------------


def test_the_result(done: Path) -> None:
    result = RunDir(done).result()
    assert result["vocab"] == ["Kind_a", "Kind_b", "Kind_c"]
    assert result["loss"] == "FlattenedLoss of CrossEntropyLoss()" and result["architecture"] == "Net"
    assert result["examples"] == {"train": 45, "validation": 15}
    # Two epochs of 4 steps of 10 examples, two of 5 steps of 8.
    assert (result["epochs"], result["steps"], result["tasks"]) == (4, 2 * 4 + 2 * 5, 1)
    assert set(result["metrics"]) == {"loss", "val_loss", "val_error_rate"}
    predictions = np.load(done / result["predictions"])
    assert predictions.shape == (15, 3) and np.allclose(predictions.sum(1), 1, atol=1e-6)


def test_the_history_goes_over_all_stages(done: Path) -> None:
    rows = history(done)
    assert [(row["epoch"], row["stage"]) for row in rows] == [("1", "3"), ("2", "3"), ("3", "7"), ("4", "7")]
    assert list(rows[0])[:5] == ["epoch", "stage", "loss", "val_loss", "val_error_rate"]
    assert not rows[1]["first_learning_rate"] and float(rows[2]["first_learning_rate"]) < float(
        rows[2]["learning_rate"]
    )
    assert "epoch 4/4  step 5/5  loss" in log(done)
    progress = RunDir(done).progress()
    assert (progress.epoch, progress.epochs) == (4, 4)


def test_the_pictures_and_the_table(done: Path) -> None:
    names = {"show_batch", "confusion_matrix", "top_losses", "lr_find_find", "lr_find_all", "learning_curves"}
    assert {file.stem for file in (done / "plots").iterdir()} == names
    for file in (done / "plots").iterdir():
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000, file
    with (done / "most_confused.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["actual", "predicted", "count"] and all(int(count) > 0 for _, _, count in rows)
    counts = [int(count) for _, _, count in rows]
    assert counts == sorted(counts, reverse=True)
    wrong = round(float(RunDir(done).result()["metrics"]["val_error_rate"]) * 15)
    assert sum(counts) == wrong > 0


def test_the_log_says_how_an_example_is_made_and_what_is_trained(done: Path) -> None:
    for line in (
        "Setting-up type transforms pipelines",
        "Building one batch",
        "Total trainable params: 531",
        "stage 2: lr_find find, 12 steps at most",
        "epoch 1/4",
    ):
        assert log(done).count(line) == 1, line


def test_a_finder_leaves_its_curve_and_four_suggestions(done: Path) -> None:
    found = json.loads((done / "lr_find_find.json").read_text())
    assert list(found["suggestions"]) == ["minimum", "steep", "valley", "slide"]
    assert len(found["learning_rates"]) == len(found["losses"]) == 12
    assert found["learning_rates"] == sorted(found["learning_rates"])
    # The first stage was trained with what it found: one cycle begins at a 25th of it.
    steps = curves(done)["train", "learning_rate"]
    assert steps[0] == (1, pytest.approx(found["suggestions"]["valley"] / 25, rel=1e-6))


def test_tensorboard_has_each_step_once_and_validation_apart(done: Path) -> None:
    found = curves(done)
    assert set(found) == {
        ("train", "batch_loss"), ("train", "learning_rate"), ("train", "examples_per_second"), ("train", "show_batch"),
        ("train", "epoch_loss"), ("train", "epoch_learning_rate"),
        ("validation", "epoch_loss"), ("validation", "epoch_error_rate"), ("validation", "confusion_matrix"),
    }  # fmt: skip
    assert [step for step, _ in found["train", "batch_loss"]] == list(range(1, 19))
    errors = [value for _, value in found["validation", "epoch_error_rate"]]
    assert errors == pytest.approx([float(row["val_error_rate"]) for row in history(done)])


def test_tensorboard_has_the_pictures_and_where_they_are_asked_for_the_graph_and_a_profile(
    start: Ask, done: Path, tmp_path: Path
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    pictures = {value.tag: (kind, step, value.image) for kind, step, value in told(done) if value.HasField("image")}
    for tag, place in (("show_batch", ("train", 0)), ("confusion_matrix", ("validation", 4))):
        kind, step, image = pictures[tag]
        assert (kind, step) == place and image.encoded_image_string == (done / "plots" / f"{tag}.png").read_bytes()
        assert image.width > 100 and image.height > 100

    sections = {
        "train": {"recipe": [{"fit": {"epochs": 2}}]},
        "tensorboard": {"graph": True, "profile_steps": [3, 5], "every_steps": None},
    }
    plain, tmp_path = tmp_path / "plain", tmp_path / "run"
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    assert start(plain, sections={**sections, "tensorboard": {"enabled": False}})["status"] == 0, log(plain)
    assert len({RunDir(folder).result()["weights_sha256"] for folder in (tmp_path, plain)}) == 1
    (profile,) = (tmp_path / "tensorboard" / "train" / "plugins" / "profile").iterdir()
    (trace,) = profile.iterdir()
    assert profile.name == "steps-3-5" and trace.name.endswith(".trace.json.gz") and trace.stat().st_size < 5e6
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::convolution" in names and any(str(name).startswith("ProfilerStep") for name in names)
    (file_,) = (path for path in (tmp_path / "tensorboard" / "train").iterdir() if path.is_file())
    reader = PyRecordReader_New(str(file_))
    for _ in range(2):
        reader.GetNext()
    graph = GraphDef.FromString(Event.FromString(reader.record()).graph_def)
    assert {"aten::_convolution", "aten::linear"} <= {node.op for node in graph.node}
    assert set(curves(tmp_path)) == {
        ("train", "epoch_loss"), ("train", "epoch_learning_rate"),
        ("validation", "epoch_loss"), ("validation", "epoch_error_rate"),
    }  # fmt: skip


def test_both_models_can_be_used_elsewhere(start: Ask, done: Path) -> None:
    (first, *_) = sorted(file.name for file in (done.parent / "photographs").iterdir())
    seen = start(done, do="in_fork", function="models", photograph=first)
    assert seen["keys"] == ["arch", "model", "vocab"] and seen["arch"] == "Net" and seen["same"]
    assert seen["vocab"] == ["Kind_a", "Kind_b", "Kind_c"] and seen["predicted"] in seen["vocab"]
    assert sum(seen["chances"]) == pytest.approx(1, abs=1e-5)
    assert not seen["patched"] and "truba_runner" not in seen["callbacks_from"]
    assert sorted(file.name for file in (done / "checkpoints" / "models").iterdir()) == ["best.pt", "model.pth"]


@pytest.mark.parametrize(
    ("recipe", "calls"),
    [
        (
            [{"fine_tune": {"epochs": 2, "freeze_epochs": 1, "base_lr": 0.01}}],
            "learn.fine_tune(2, base_lr=0.01, freeze_epochs=1)",
        ),
        (
            [
                "freeze",
                {"lr_find": {"name": "find", "num_it": 40, "end_lr": 1.0}},
                {"fit_one_cycle": {"epochs": 1, "lr": "find.valley"}},
                "unfreeze",
                {"fit_one_cycle": {"epochs": 1, "lr": [1e-4, 1e-3], "pct_start": 0.5, "wd": 0.2}},
                {"fit_flat_cos": {"epochs": 1, "lr": 1e-3}},
                {"fit": {"epochs": 1, "lr": "find.steep/10"}},
            ],
            "learn.freeze(); found = learn.lr_find(num_it=40, end_lr=1.0, show_plot=False, suggest_funcs=funcs)\n"
            "learn.fit_one_cycle(1, found.valley); learn.unfreeze()\n"
            "learn.fit_one_cycle(1, slice(1e-4, 1e-3), pct_start=0.5, wd=0.2)\n"
            "learn.fit_flat_cos(1, 1e-3); learn.fit(1, found.steep * 0.1)",
        ),
    ],
    ids=["fine_tune", "two stages"],
)  # fmt: skip
def test_a_recipe_trains_as_fastais_own_calls_do_to_the_bit(
    recipe: list[Any], calls: str, start: Ask, tmp_path: Path
) -> None:
    options = {"dropout": 0.0}
    sections = {"train": {"recipe": recipe, "callbacks": []}, "job": {"options": options}}
    assert start(tmp_path, sections=sections, job=SAME_EACH_TIME)["status"] == 0, log(tmp_path)
    expected = start(tmp_path, do="in_fork", function="stock", recipe=calls, options=options)
    assert RunDir(tmp_path).result()["weights_sha256"] == expected["sha256"]
    last = [float(history(tmp_path)[-1][name]) for name in ("loss", "val_loss", "val_error_rate")]
    assert last == expected["values"][-1]


# -- what is told ----------------------------------------------------------------------------------------------


def broken(old: str, new: str) -> str:
    assert old in runs.JOB
    return runs.JOB.replace(old, new)


FAILURES: list[tuple[str, dict[str, Any]]] = [
    (
        r"data.options.siez: data_block in .* takes no such option. Did you mean size",
        {"data": {"options": {"siez": 8}}},
    ),
    (r"job.options.widht: build_learner in .* Did you mean width", {"job": {"options": {"widht": 8}}}),
    (r"load_items in .* found nothing for data.name=made", {"data": {"options": {"count": 0}}}),
    (
        r"training set has 45 items, but a batch needs 50: .* Set train.batch_size lower",
        {"train": {"batch_size": 50}},
    ),
    (
        r"training set has 45 items, but a batch needs 50: .* Set batch_size of the stage resize lower",
        {"train": {"recipe": [{"fit": {"epochs": 1}}, {"resize": {"size": 8, "batch_size": 50}}]}},
    ),
    (r"The training set is empty: .* holds out all 60 items", {"data": {"options": {"held_out": 1.0}}}),
    (r"The validation set is empty: .* all 60 .*finish.evaluate=false", {"data": {"options": {"held_out": 0.001}}}),
    (
        r"train.callbacks\[0\]: neither fastai nor .* has 'EarlyStopingCallback'. Did you mean EarlyStoppingCallback",
        {"train": {"callbacks": ["EarlyStopingCallback"]}},
    ),
    (
        r"train.callbacks\[0\]: EarlyStoppingCallback cannot be made with {'patienc': 3}",
        {"train": {"callbacks": [{"class_name": "EarlyStoppingCallback", "config": {"patienc": 3}}]}},
    ),
    (r"train.metrics\[0\]: neither fastai nor .* Did you mean error_rate", {"train": {"metrics": ["error_rat"]}}),
    (
        r"lr_find find has no suggestion of that kind .*lr_find_find.json",
        {"train": {"recipe": [{"lr_find": {"name": "find", "num_it": 6}}, {"fit": {"epochs": 1, "lr": "find.slide"}}]}},
    ),
]


@pytest.mark.parametrize(("told", "sections"), FAILURES, ids=[told[:24] for told, _ in FAILURES])
def test_what_the_config_gets_wrong(told: str, sections: dict[str, Any], start: Ask, tmp_path: Path) -> None:
    assert start(tmp_path, sections=sections)["status"] == 1
    (message,) = [line for line in log(tmp_path).splitlines() if line.startswith("Failed: ")]
    assert re.search(told, message), message
    assert "epoch 1/" not in log(tmp_path), "it is told before anything is trained"


JOBS: list[tuple[str, str, str]] = [
    ("def data_block", "def datablock", "has no function data_block"),
    ("return DataBlock(", "return list() or dict(", "data_block in .* returned a dict. It has to be a DataBlock"),
    ("return Learner(", "return dict(a=1) or Learner(", "build_learner in .* returned a dict, not a Learner"),
    ("size=16, item_size", "pixels=16, item_size", "data.options.size: data_block in .* takes no such option"),
    (
        "self.total = 0.0\n",
        "self.total = 0.0\n\n    def before_step(self):\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')\n",
        r"out of memory .*train.batch_size \(now 10\).*train.mixed_precision=mixed_float16 \(now float32\)",
    ),
    (
        "nn.Linear(width",
        "nn.BatchNorm1d(width), nn.Linear(width",
        r"BatchNorm needs batches of at least two examples, .* train.batch_size to 2 or more",
    ),
    (
        "def after_batch",
        "def get_state(self):\n        return {1, 2}\n\n    def set_state(self, state): pass\n\n    def after_batch",
        "get_state of Averaging",
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), JOBS, ids=[told[:24] for _, _, told in JOBS])
def test_what_the_job_gets_wrong(old: str, new: str, told: str, start: Ask, tmp_path: Path) -> None:
    job = broken(old, new)
    if "pixels" in new:
        job = job.replace("aug_transforms(size=size", "aug_transforms(size=pixels")
    sections = {"train": {"batch_size": 1}} if "BatchNorm1d" in new else {}
    assert start(tmp_path, job=job, sections=sections)["status"] == 1
    (message,) = [line for line in log(tmp_path).splitlines() if line.startswith("Failed: ")]
    assert re.search(told, message), message
    assert "epoch 1/" not in log(tmp_path) or "get_state" in told, "it is told before anything is trained"


def test_all_items_may_be_trained_on(start: Ask, tmp_path: Path) -> None:
    train = {"recipe": [{"fit": {"epochs": 1}}], "callbacks": []}
    sections = {"data": {"options": {"held_out": 0.001}}, "train": train, "finish": {"evaluate": False}}
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    result = RunDir(tmp_path).result()
    assert result["examples"] == {"train": 60, "validation": 0} and result["vocab"] == ["Kind_a", "Kind_b", "Kind_c"]


def test_a_failure_in_a_reading_process_ends_the_run(start: Ask, tmp_path: Path) -> None:
    """The readers are deaf to the signal by which Python ends them at its exit, and it waits for them."""
    job = broken("item_tfms=RandomResizedCrop(", "item_tfms=[fail, RandomResizedCrop(").replace(
        "5), batch_t", "5)], batch_t"
    )
    job += "\ndef fail(image):\n    return image if torch.utils.data.get_worker_info() is None else image.no_such()\n"
    assert start(tmp_path, job=job, sections={"data": {"workers": 2}})["status"] == 1
    assert "no_such" in log(tmp_path)


def test_a_transform_that_fails_is_shown_with_all_steps_before_it(start: Ask, tmp_path: Path) -> None:
    job = broken("item_tfms=RandomResizedCrop(item_size, min_scale=0.5)", "item_tfms=lambda image: image.no_such()")
    assert start(tmp_path, job=job)["status"] == 1
    assert "Setting-up type transforms pipelines" in log(tmp_path) and "Building one sample" in log(tmp_path)
    assert "AttributeError" in log(tmp_path)


def test_a_picture_that_cannot_be_drawn_stops_no_run(start: Ask, tmp_path: Path) -> None:
    job = runs.JOB + "\nDataLoaders.show_batch = property(lambda self: 1 / 0)\n"
    sections = {"train": {"recipe": [{"fit": {"epochs": 1}}]}, "tensorboard": {"enabled": False}, **PICTURES}
    assert start(tmp_path, job=job, sections=sections)["status"] == 0, log(tmp_path)
    assert "show_batch.png could not be drawn (ZeroDivisionError" in log(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_metrics_callbacks_and_rates_of_the_config(start: Ask, tmp_path: Path) -> None:
    """Also half precision, which without a GPU is told of and left, and a stage that a callback ends early."""
    train = {
        "learning_rate": 1e-9,
        "mixed_precision": "mixed_float16",
        "metrics": ["accuracy", {"class_name": "F1Score", "config": {"average": "macro"}}],
        "callbacks": [{"class_name": "EarlyStoppingCallback", "config": {"min_delta": 10.0, "patience": 1}}],
        "recipe": [{"fit_one_cycle": {"epochs": 4}}, {"fit": {"epochs": 1}}],
    }
    sections = {"train": train, "checkpoint": {"model_each_epoch": True, "monitor": "val_accuracy", "mode": "max"}}
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    assert "train.mixed_precision=mixed_float16 needs a GPU" in log(tmp_path)
    rows = history(tmp_path)
    # The first epoch is better than none, the second no better than that; the numbers are those of the recipe.
    assert [(row["epoch"], row["stage"]) for row in rows] == [("1", "1"), ("2", "1"), ("5", "2")]
    assert {"val_accuracy", "val_f1_score"} <= set(rows[0]) and "val_error_rate" not in rows[0]
    assert float(rows[0]["learning_rate"]) <= 1e-9
    kept = sorted(file.name for file in (tmp_path / "checkpoints" / "models").iterdir())
    assert kept == ["model_1.pt", "model_2.pt", "model_5.pt"]
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_a_learner_that_cannot_be_pickled_is_evaluated_all_the_same(start: Ask, tmp_path: Path) -> None:
    job = broken(
        "self.total = 0.0\n", "self.total = 0.0\n        import threading\n        self.lock = threading.Lock()\n"
    )
    sections = {"checkpoint": {"save_model": True}, "train": {"recipe": [{"fit": {"epochs": 1}}]}, **PICTURES}
    assert start(tmp_path, job=job, sections=sections)["status"] == 0, log(tmp_path)
    assert "export.pkl could not be written (TypeError: cannot pickle" in log(tmp_path)
    result = RunDir(tmp_path).result()
    assert "export" not in result and np.load(tmp_path / result["predictions"]).shape == (15, 3)
    assert not list(tmp_path.glob(".export*")) and (tmp_path / "plots" / "top_losses.png").exists()


def test_a_disk_that_is_full_at_the_export_fails_the_run_which_goes_on_later(start: Ask, tmp_path: Path) -> None:
    full = "\nsave = torch.save\ndef full(what, file, **given):\n"
    full += (
        "    if isinstance(what, Learner):\n        raise OSError(28, os.strerror(28))\n    save(what, file, **given)\n"
    )
    sections = {"checkpoint": {"save_model": True}, "train": {"recipe": [{"fit": {"epochs": 1}}]}}
    assert start(tmp_path, job=runs.JOB + full + "torch.save = full\n", sections=sections)["status"] == 1
    assert "No space left on device" in log(tmp_path) and not (tmp_path / "result.json").exists()
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    assert (tmp_path / RunDir(tmp_path).result()["export"]).stat().st_size > 1000
    assert log(tmp_path).count("epoch 1/1") == 1 and not list(tmp_path.glob(".export*"))


def test_folders_and_names_as_people_have_them(start: Ask, tmp_path: Path) -> None:
    """Spaces, Turkish letters, a name from a disk that was not UTF-8, dollar signs; Pillow's modes; a class of one."""
    from PIL import Image

    photographs = tmp_path / "fotoğraf arşivi" / "photographs"
    photographs.mkdir(parents=True)
    dice = np.random.default_rng(0)
    kinds = {"ığdır gülü": "RGB", "Şakayık": "L", "lâle": "CMYK", "$ 5 $": "RGB", os.fsdecode(b"g\xfcl"): "RGB"}
    for kind, mode in kinds.items():
        for number in range(8):
            pixels = Image.fromarray(dice.integers(0, 255, (32, 40, 3)).astype("uint8"))
            pixels.convert(mode).save(photographs / f"{kind}_{number}.jpg")
    Image.new("RGB", (40, 32)).save(photographs / "tek_0.jpg")
    run = photographs.parent / "run"
    job = broken('return sorted(get_image_files(folder / "photographs"))[:count]', 'return folder / "photographs"')
    job = job.replace("RandomResizedCrop(item_size, min_scale=0.5)", "Resize(item_size)")
    for pack in (False, True):
        sections = {"data": {"pack": pack, "label_pattern": r"(.+)_\d+.jpg$"}, "checkpoint": {"save_model": True}}
        sections.update({"train": {"recipe": [{"fit": {"epochs": 1}}]}, **PICTURES})
        assert start(run, job=job, sections=sections)["status"] == 0, log(run)
        assert set(RunDir(run).result()["vocab"]) == {*kinds, "tek"}
        assert (run / "most_confused.csv").exists() and (run / "predictions.npy").exists()
        shutil.rmtree(run)
