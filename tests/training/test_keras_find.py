"""The learning-rate finder for Keras: its curve is what NumPy computes by hand, and it leaves nothing but a rate."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import keras_resume_runs as runs
import numpy as np
import pytest
from fastai_resume_runs import Ask

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.keras.batches.splits import epoch_order

INTERRUPTED = 75

# A network without anything random in it: least squares.
LINEAR = """
import keras, numpy as np

def build_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])

def load_data(name, folder):
    dice = np.random.default_rng(3)
    x = dice.normal(size=(96, 3))
    y = x @ [[1.0], [-2.0], [0.5]] + dice.normal(size=(96, 1))
    return {"train": (x.astype("float32"), y.astype("float32"))}
"""
RAMP = {"start_lr": 1e-3, "end_lr": 10.0, "num_it": 40}
LEAST_SQUARES = {
    "loss": "mse", "metrics": [], "optimizer": "sgd", "learning_rate": None, "callbacks": [], "batch_size": 16,
    "epochs": 1,
}  # fmt: skip

# As a stream of batches whose number nobody knows; at the first start its 20th brings Slurm's signal.
STREAM = (
    LINEAR
    + """
import os, signal, pathlib
made = 0

def batches():
    (x, y), = arrays("", "").values()
    for start in range(0, 96, 16):
        global made
        made += 1
        if made == 20 and not pathlib.Path("told").exists():
            pathlib.Path("told").touch()
            os.kill(os.getpid(), signal.SIGUSR2)
        yield x[start : start + 16], y[start : start + 16]

arrays, load_data = load_data, lambda name, folder: {"train": batches}
"""
)


def by_hand(batch_size: int) -> tuple[list[float], list[float]]:
    """The rates, and the smoothed losses, of gradient descent with a rate that grows from step to step."""
    dice = np.random.default_rng(3)
    x = dice.normal(size=(96, 3))
    y = x @ [[1.0], [-2.0], [0.5]] + dice.normal(size=(96, 1))
    weights, average, rates, losses = np.zeros((3, 1)), 0.0, [], []
    steps = 96 // batch_size
    for step in range(RAMP["num_it"]):
        rates.append(RAMP["start_lr"] * (RAMP["end_lr"] / RAMP["start_lr"]) ** (step / RAMP["num_it"]))
        rows = epoch_order(0, step // steps, 96)[step % steps * batch_size :][:batch_size]
        error = x[rows] @ weights - y[rows]
        average = 0.98 * average + 0.02 * float((error**2).mean())
        losses.append(average / (1 - 0.98 ** (step + 1)))
        weights = weights - rates[-1] * 2 * x[rows].T @ error / batch_size
        if losses[-1] > 4 * min(losses):
            break
    return rates, losses


def found(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "lr_find_find.json").read_text()))


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def finds(**more: Any) -> dict[str, Any]:
    """The sections of a run that is a finder and nothing else."""
    return {"sweep": {"kind": "lr_find"}, "train": {**LEAST_SQUARES, "lr_find": RAMP}, **more}


@pytest.mark.parametrize(
    ("more", "tasks"),
    [
        ({"train": {"steps_per_execution": 32, "jit_compile": True}}, 1),
        ({"resources": {"gpus": 2}}, 1),
        ({"resources": {"gpus": 2}}, 2),
    ],
    ids=["32 steps an execution", "two devices", "two nodes of two devices"],
)
def test_the_curve_is_that_of_the_whole_batch_a_step_a_rate(
    more: dict[str, Any], tasks: int, start_keras: Ask, tmp_path: Path
) -> None:
    sections = finds()
    sections["train"] |= more.get("train", {})
    sections["resources"] = more.get("resources", {})
    assert start_keras(tmp_path, sections=sections, job=LINEAR, tasks=tasks)["statuses"] == [0] * tasks, log(tmp_path)
    rates, losses = by_hand(16)
    assert len(rates) < RAMP["num_it"], "it ends where the loss has grown"
    assert found(tmp_path)["learning_rates"] == pytest.approx(rates, rel=1e-12)
    assert found(tmp_path)["losses"] == pytest.approx(losses, rel=1e-4)
    assert found(tmp_path)["losses"] != pytest.approx(by_hand(8)[1][: len(losses)], rel=1e-2)
    assert RunDir(tmp_path).result()["suggestions"] == found(tmp_path)["suggestions"]
    assert (tmp_path / "plots/lr_find_find.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "history.csv").exists()


def history(folder: Path) -> list[list[str]]:
    return [row.split(",")[:-1] for row in (folder / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [{}, {"train": {"steps_per_execution": 4}, "resources": {"gpus": 2}}],
    ids=["one device", "two devices, 4 steps an execution"],
)
def test_a_training_after_the_finder_is_the_one_without_it_at_the_same_rate(
    more: dict[str, Any], start_keras: Ask, tmp_path: Path
) -> None:
    """With BatchNorm, dropout, noise, augmentation, generators, and a callback that draws from the host's numbers."""

    def trained(name: str, **train: Any) -> RunDir:
        own = {**runs.SECTIONS["train"], "epochs": 2, **more.get("train", {}), **train}
        sections = {"train": own, "resources": more.get("resources", {})}
        assert start_keras(tmp_path / name, sections=sections)["status"] == 0, log(tmp_path / name)
        return RunDir(tmp_path / name)

    with_finder = trained("with", learning_rate=None, lr_find={"rate": "valley*2", "num_it": 40})
    taken = with_finder.result()["lr_find"]
    assert (
        taken["learning_rate"]
        == 2 * taken["suggestions"]["valley"]
        == 2 * found(with_finder.path)["suggestions"]["valley"]
    )
    assert "learning_rate" in (with_finder.path / "history.csv").read_text()
    without = trained("without", learning_rate=taken["learning_rate"])
    for key in ("weights_sha256", "metrics", "steps"):
        assert with_finder.result()[key] == without.result()[key], key
    assert history(with_finder.path) == history(without.path)
    # A start that goes on takes the rate that is on record.
    curve = (with_finder.path / "lr_find_find.json").stat().st_mtime_ns
    trained("with", learning_rate=None, lr_find={"rate": "valley*2", "num_it": 40})
    assert (with_finder.path / "lr_find_find.json").stat().st_mtime_ns == curve
    assert with_finder.result()["lr_find"] == taken and "found at an earlier start" in log(with_finder.path)

    if more:
        return
    # The finder as a run of its own, before the training.
    find = {**runs.SECTIONS["train"], "learning_rate": None, "lr_find": {"num_it": 40}}
    sections = {"train": {**find, "callbacks": []}, "sweep": {"kind": "lr_find"}}
    assert start_keras(tmp_path / "finder", sections=sections)["status"] == 0, log(tmp_path / "finder")
    assert found(tmp_path / "finder") == found(with_finder.path)
    after = RunDir(tmp_path / "after")
    after.create()
    after.append_submission(Event(Kind.LOCAL, time=time.time(), job_id="1", finder="finder"))
    trained("after", learning_rate=None, lr_find={"rate": "valley*2", "num_it": 40})
    assert after.result()["weights_sha256"] == without.result()["weights_sha256"]
    assert after.result()["lr_find"] == {**taken, "finder": "finder"} and not after.rate_curve("find")


def test_an_interrupted_finder_over_a_stream_starts_over(start_keras: Ask, tmp_path: Path) -> None:
    sections = finds()
    sections["train"] |= {"batch_size": None}
    for status in (INTERRUPTED, 0):
        assert start_keras(tmp_path, sections=sections, job=STREAM)["status"] == status, log(tmp_path)
    assert "nothing to save yet" in log(tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "told").touch()
    assert start_keras(whole, sections=sections, job=STREAM)["status"] == 0, log(whole)
    assert found(tmp_path) == found(whole) and 20 < len(found(whole)["losses"]) < RAMP["num_it"]


# A model that compiles itself, with a rate that falls as it will.
SCHEDULED = LINEAR.replace(
    "    return keras.Sequential([",
    "    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 9, 0.5)\n    made = keras.Sequential([",
).replace('zeros")])', "zeros\")])\n    made.compile(keras.optimizers.SGD(rate), 'mse')\n    return made")


@pytest.mark.parametrize(
    ("job", "asked", "words"),
    [
        (SCHEDULED, "valley", "this optimizer follows a schedule"),
        (LINEAR, {"rate": "slide", "num_it": 6}, "the finder has no suggestion of that kind"),
    ],
)
def test_what_has_no_rate_to_give_says_so(job: str, asked: Any, words: str, start_keras: Ask, tmp_path: Path) -> None:
    sections = {"train": {**LEAST_SQUARES, "lr_find": asked}}
    assert start_keras(tmp_path, sections=sections, job=job)["status"] == 1
    assert words in log(tmp_path) and "Traceback" not in log(tmp_path)
