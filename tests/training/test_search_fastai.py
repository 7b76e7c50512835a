"""A search over the lesson's pet breeds, from the command line: Hyperband's rounds go on, whatever the recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from truba_runner.search.directory import SearchDir
from truba_runner.search.state import read_state

ROOT = Path(__file__).resolve().parents[2]

# Small crops of the photographs that the packages bring, and a small network.
PETS = [
    "+experiment=pets", "data.name=crops", "data.workers=0", "data.options.size=32", "+data.options.item_size=40",
    "train.batch_size=8", "train.epochs=1", "job.options.arch=squeezenet1_1", "job.options.pretrained=false",
    "tensorboard.enabled=false", "finish.plots=false",
]  # fmt: skip
SEARCH = [
    *PETS, "sweep=hyperband", "sweep.max_epochs=2", "sweep.factor=2", "sweep.objective=val_error_rate",
    "sweep.direction=min",
    "+sweep.space={train.learning_rate:{float:{min_value:1e-4,max_value:1e-2,sampling:log}}}",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRUBA_CLUSTER": "local", "XDG_STATE_HOME": str(folder)}
    argv = [sys.executable, "-m", "truba_runner", *arguments]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def searched(folder: Path, name: str, *arguments: str) -> tuple[SearchDir, dict[str, Any]]:
    """A Hyperband search, and its trials; the third is the one that is promoted from the first two."""
    done = run(folder, *SEARCH, f"name={name}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "runs").glob(f"{name}-*")
    search = SearchDir(path)
    trials = read_state(search)["trials"]
    assert [trial["status"] for trial in trials.values()] == ["COMPLETED"] * 5
    promoted = trials["0002"]["hyperparameters"]["values"]
    assert (promoted["tuner/initial_epoch"], promoted["tuner/epochs"]) == (1, 2)
    return search, trials


def trained(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    done = run(folder, *arguments, f"name={name}", "tensorboard.enabled=false", "finish.plots=false")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "runs").glob(f"{name}-*")
    return result_of(path)


def test_a_longer_fit_is_what_training_as_long_at_once_comes_to(tmp_path: Path) -> None:
    recipe = "train.recipe=[{fit_one_cycle:{epochs:1}},{fit:{epochs:1}}]"
    search, trials = searched(tmp_path, "steady", recipe, "sweep.best_models=5")
    promoted = search.trial("0002")
    assert "resumes from epoch 3, step 0" in (promoted.logs / "trial_0_log.out").read_text()
    rate = trials["0002"]["hyperparameters"]["values"]["train.learning_rate"]
    recipe = "train.recipe=[{fit_one_cycle:{epochs:1}},{fit:{epochs:2}}]"
    at_once = trained(tmp_path, "once", *PETS, recipe, f"train.learning_rate={rate!r}")
    assert at_once["weights_sha256"] == promoted.result()["weights_sha256"] and at_once["epochs"] == 3
    # The score is the last epoch's, and so are the model that is kept and what it is worth.
    for best in result_of(search.path)["best"]:
        assert Path(best["model"]).is_file() and best["metrics"]["val_error_rate"] == best["score"]
        assert (
            result_of(search.best(best["trial"]).path)["weights_sha256"]
            == (search.trial(best["trial"]).result()["weights_sha256"])
        )


def test_a_cycle_is_followed_by_another(tmp_path: Path) -> None:
    """The lesson's fine_tune: Hyperband decides on the epochs after those of the frozen body."""
    search, trials = searched(tmp_path, "cycles")
    promoted = search.trial("0002")
    values = trials["0002"]["hyperparameters"]["values"]
    rate = values["train.learning_rate"]
    # The rates of fine_tune's own second part.
    again = {"epochs": 1, "lr": [rate / 2 / 100, rate / 2], "pct_start": 0.3, "div": 5.0}
    expected = [{"fine_tune": {"epochs": 1}}, {"fit_one_cycle": again}]
    assert promoted.read_config()["train"]["recipe"] == expected
    assert "resumes from epoch 3, step 0" in (promoted.logs / "trial_0_log.out").read_text()
    best = result_of(search.path)["best"][0]
    assert best["score"] == min(trial["score"] for trial in trials.values())
    # What truba best writes of the promoted one trains to the same weights.
    from truba_runner.search.best import experiment_text

    file = tmp_path / "conf" / "experiment" / "again.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(experiment_text(search, read_state(search), trials["0002"]))
    assert yaml.safe_load(file.read_text())["train"]["recipe"] == expected
    at_once = trained(tmp_path, "again", "+experiment=again")
    assert at_once["weights_sha256"] == promoted.result()["weights_sha256"] and at_once["epochs"] == 3


def test_what_no_search_can_do_with_a_learner_is_refused_at_once(tmp_path: Path) -> None:
    refused = run(
        tmp_path, *SEARCH, "resources.gpus=2", "train.recipe=[{fit:{epochs:1}},unfreeze]", "+sweep.space.n.boolean={}"
    )  # noqa: E501
    assert refused.returncode == 2 and not (tmp_path / "runs").exists()
    for told in ("one for each GPU", "End the recipe with a stage that trains", "job.options.n"):
        assert told in refused.stderr, refused.stderr
