"""A search over a real Keras model, from the command line: the tutorial's build_model(hp), on two mirrored devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truba_runner.config.schema import experiment_from
from truba_runner.search.conclusion import experiment_yaml
from truba_runner.search.directory import SearchDir
from truba_runner.search.state import read_state

ROOT = Path(__file__).resolve().parents[2]

JOB = """
import keras
from keras import layers
import mnist

def build_model(hp):
    inputs = keras.Input(shape=(28, 28))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dense(units=hp.Int("units", min_value=8, max_value=32, step=8), activation="relu")(x)
    outputs = layers.Dense(10, activation="softmax")(layers.Dropout(0.2)(x))
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(hp.Choice("learning_rate", values=[1e-2, 1e-3])),
        loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def load_data(name, folder):
    (x, y), (v, w), _ = mnist.load_digits().values()
    return {"train": (x[:320], y[:320]), "validation": (v[:100], w[:100]), "test": (v[100:200], w[100:200])}
"""
SETTINGS = [
    "+experiment=mnist_search", "name=tuned", "job.module=tuned", "data.name=digits", "train.jit_compile=false",
    "train.steps_per_execution=5", "resources.gpus=2", "tensorboard.enabled=false",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRUBA_CLUSTER": "local", "XDG_STATE_HOME": str(folder)}
    argv = [sys.executable, "-m", "truba_runner", *arguments]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "tuned.py").write_text(JOB)
    (folder / "jobs" / "mnist.py").write_text((ROOT / "jobs" / "mnist.py").read_text())
    done = run(folder, *SETTINGS, "sweep=hyperband", "sweep.max_epochs=2", "sweep.factor=2")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "runs").glob("tuned-*")
    return SearchDir(found)


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def test_the_trials_are_hyperbands_and_run_on_every_device(search: SearchDir) -> None:
    trials = read_state(search)["trials"]
    rounds = [(trial["hyperparameters"]["values"]["tuner/bracket"], trial["hyperparameters"]["values"]["tuner/round"])
              for trial in trials.values()]  # fmt: skip
    assert rounds == [(1, 0), (1, 0), (1, 1), (0, 0), (0, 0)]
    for name in trials:
        assert result_of(search.trials_folder / name)["devices"] == ["CPU:0", "CPU:1"]


def test_the_best_model_is_evaluated_on_data_that_the_search_has_not_seen(search: SearchDir) -> None:
    result = result_of(search.path)
    (best,) = result["best"]
    state = read_state(search)
    assert best["score"] == min(trial["score"] for trial in state["trials"].values())
    assert best["metrics"]["val_loss"] == best["score"] and best["metrics"]["test_loss"] != best["score"]
    assert Path(best["model"]).is_file() and (search.best(best["trial"]).path / "predictions.npy").is_file()
    # A trial itself is evaluated on nothing but its validation data, and leaves few files.
    for trial in search.trials_folder.iterdir():
        assert not any(name.startswith("test_") for name in result_of(trial)["metrics"])
        assert len([*trial.rglob("*")]) <= 12


def test_a_promoted_trial_is_what_training_in_one_go_comes_to(search: SearchDir) -> None:
    state = read_state(search)
    promoted = next(
        trial for trial in state["trials"].values() if "tuner/trial_id" in trial["hyperparameters"]["values"]
    )
    trained = result_of(search.trials_folder / promoted["trial_id"])
    assert (search.trials_folder / promoted["trial_id"] / "history.csv").read_text().count("\n") == 3
    log = (search.trials_folder / promoted["trial_id"] / "logs" / "trial_0_log.out").read_text()
    assert "resumes from epoch 2, step 0" in log
    # Its own experiment, by hand: trained anew, from the first step to the last, in a process of its own.
    project = search.path.parent.parent
    (project / "conf" / "experiment").mkdir(parents=True)
    text = experiment_yaml(search, experiment_from(search.read_config()), state, promoted)
    (project / "conf" / "experiment" / "again.yaml").write_text(text)
    done = run(project, "+experiment=again", "resources.gpus=2", "tensorboard.enabled=false")
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = (project / "runs").glob("tuned-best-*")
    assert result_of(again)["weights_sha256"] == trained["weights_sha256"]
    assert result_of(again)["hyperparameters"]["values"] == promoted_values(promoted)


def promoted_values(trial: dict[str, Any]) -> dict[str, Any]:
    values = trial["hyperparameters"]["values"]
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def test_a_hyperparameter_that_the_model_does_not_ask_for_is_named(search: SearchDir) -> None:
    project = search.path.parent.parent
    done = run(project, *SETTINGS, "+job.hyperparameters.unit=8", "train.epochs=1")
    assert done.returncode == 1 and "Did you mean units?" in done.stdout, done.stdout + done.stderr
