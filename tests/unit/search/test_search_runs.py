"""Whole searches on this machine, from the command line, with a backend that needs no framework."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from searches import EXPERIMENT, ROOT, Project, wait_until

from truba_runner.config.schema import Experiment
from truba_runner.rules.experiment import plan
from truba_runner.search.directory import SearchDir
from truba_runner.search.submission import WorkersSubmission
from truba_runner.search.trial_records import values_of
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.settle import settle

pytestmark = [
    pytest.mark.programs,
    # Not imported: it brings TensorFlow along.
    pytest.mark.skipif(importlib.util.find_spec("keras_tuner") is None, reason="needs keras_tuner"),
    pytest.mark.usefixtures("plain_backend"),
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_search_from_its_start_to_the_experiment_that_trains_its_best(project: Project) -> None:
    settings = ["sweep=random", "sweep.max_trials=3", "sweep.executions_per_trial=2"]
    result = project.search(*settings, "sweep.best_models=2")
    state = project.state()
    assert [trial["status"] for trial in state["trials"].values()] == ["COMPLETED"] * 3
    assert result["trials"] == 3 and [len(result["best"]), result["failed"]] == [2, 0]
    first, second = result["best"]
    assert first["score"] <= second["score"] and first["score"] == min(one["score"] for one in state["trials"].values())
    # The mean of two executions, each with a seed of its own.
    runs = [
        json.loads((project.path / "trials" / f"{first['trial']}{end}" / "result.json").read_text())
        for end in ("", ".2")
    ]
    assert runs[0]["weights_sha256"] != runs[1]["weights_sha256"]
    assert first["score"] == pytest.approx(sum(run["metrics"]["val_loss"] for run in runs) / 2)
    for trial in (project.path / "trials").iterdir():
        assert len([*trial.rglob("*")]) <= 12
    # The same command again: nothing is trained.
    before = (project.path / "result.json").stat().st_mtime_ns
    again = project("+experiment=parabola", *settings)
    assert "has finished already" in again.stdout and (project.path / "result.json").stat().st_mtime_ns == before
    check_status(project, first)
    check_best(project, first)


def check_status(project: Project, best: dict[str, Any]) -> None:
    (row,) = json.loads(project("status", "--json").stdout)
    assert (row["state"], row["trials_told"], row["metrics"]["val_loss"]) == ("COMPLETED", 3, best["score"])
    about = json.loads(project("status", "--json", "parabola").stdout)
    assert [one["trial"] for one in about["trials"]][0] == best["trial"] and len(about["trials"]) == 3
    assert about["trials"][0]["values"] == best["values"]
    table = project("status", "parabola").stdout
    assert "3/3 trials" in table and "job.options.rate" in table


def check_best(project: Project, best: dict[str, Any]) -> None:
    file = project.folder / "conf" / "experiment" / "again.yaml"
    done = project("best", "parabola", "-n", "2", "--out", str(file))
    assert f"trial {best['trial']}" in done.stdout and "test_loss" in done.stdout, done.stderr
    assert yaml.safe_load(file.read_text())["job"]["options"]["rate"] == best["values"]["job.options.rate"]
    assert project("best", "parabola", "--out", str(file)).returncode == 2
    third = project("best", "parabola", "-n", "3", "--evaluate", "--json")
    assert all("test_loss" in one["metrics"] for one in json.loads(third.stdout[third.stdout.index("{") :])["best"])
    trained = project("+experiment=again")
    assert trained.returncode == 0, trained.stderr
    (run,) = (project.folder / "runs").glob("parabola-best-*")
    trial = json.loads((project.path / "trials" / best["trial"] / "result.json").read_text())
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == trial["weights_sha256"]


def test_trials_that_raise_or_die_are_told_as_failed_and_the_search_goes_on(tmp_path: Path) -> None:
    space = "  space:\n    job.options.kill: {choice: [-1, 5]}\n    job.options.fail: {choice: ['', on purpose]}\n"
    # In Turkish: nothing that one process knows of another goes by the words.
    project = Project(tmp_path, EXPERIMENT[: EXPERIMENT.index("  space:")] + space, "tr")
    result = project.search("sweep=grid", "sweep.max_consecutive_failed_trials=9")
    whys = {
        (
            trial["hyperparameters"]["values"]["job.options.kill"],
            trial["hyperparameters"]["values"]["job.options.fail"],
        ): (
            trial["status"],
            trial["message"] or "",
        )
        for trial in project.state()["trials"].values()
    }
    assert result["trials"] == 4 and result["failed"] == 3
    assert whys[-1, ""][0] == "COMPLETED"
    assert "ValueError: on purpose" in whys[-1, "on purpose"][1]
    assert whys[5, ""] == ("FAILED", "aynı adımda 3 kez hata mesajı bırakmadan sonlandı: sinyal SIGKILL")


def test_a_search_that_is_told_to_end_goes_on_where_it_was(project: Project) -> None:
    settings = ["+experiment=parabola", "sweep=hyperband", "sweep.max_epochs=3", "job.options.pause=0.1"]
    process = project.start(*settings)
    wait_until(lambda: len(project.told()) >= 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "has not finished" in err, out + err
    told = len(project.told())
    open_before = list(project.state()["open"])
    done = project(*settings)
    assert done.returncode == 0, done.stderr
    assert told < project.result()["trials"] == 6
    whole = Project(project.folder / "whole")
    whole.search(*settings[1:])
    assert scores(project) == scores(whole)
    for trial in open_before:
        lines = (project.path / "trials" / trial / "submissions.jsonl").read_text().splitlines()
        starts = [event for line in lines if (event := json.loads(line))["event"] == "started"]
        assert starts and not any(event["steps_lost"] for event in starts)


def test_a_loser_leaves_no_checkpoint_and_comes_to_the_same_when_it_is_wanted_after_all(project: Project) -> None:
    project.search("sweep=hyperband", "sweep.max_epochs=4", "sweep.factor=2", "sweep.best_models=2")
    state = project.state()
    best, second, third = sorted(state["trials"].values(), key=lambda trial: trial["score"])[:3]
    kept = {trial.name for trial in (project.path / "trials").iterdir() if (trial / "checkpoints").exists()}
    assert kept == {best["trial_id"], second["trial_id"]}
    left = [len([*trial.rglob("*")]) for trial in (project.path / "trials").iterdir() if trial.name not in kept]
    assert set(left) == {7}
    # None was taken from a trial that was promoted later.
    promoted = [trial for trial in state["trials"].values() if "tuner/trial_id" in values_of(trial)]
    assert len(promoted) > 3
    for trial in promoted:
        lines = (project.path / "trials" / trial["trial_id"] / "submissions.jsonl").read_text().splitlines()
        (start,) = [event for line in lines if (event := json.loads(line))["event"] == "started"]
        assert start["position"] == [values_of(trial)["tuner/initial_epoch"], 0]
    done = project("best", "parabola", "-n", "3", "--evaluate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])["best"]
    for row, trial in zip(found, (best, second, third), strict=True):
        shift = values_of(trial)["job.options.shift"]
        assert row["metrics"]["test_loss"] == row["score"] == trial["score"] and shift <= row["score"]


def scores(project: Project) -> dict[str, float]:
    return {name: trial["score"] for name, trial in project.state()["trials"].items()}


def test_two_searches_in_one_directory_by_mistake(project: Project) -> None:
    project.search("sweep=random", "sweep.max_trials=1", "sweep.directory=mine")
    before = project.state()
    for other in (
        ["sweep=random", "sweep.max_trials=2"],
        ["sweep=grid"],
        ["sweep=random", "sweep.max_trials=1", "train.epochs=3"],
    ):
        refused = project("+experiment=parabola", *other, "sweep.directory=mine")
        assert refused.returncode == 2 and "sweep.directory=mine" in refused.stderr and "fresh=true" in refused.stderr
    assert project.state() == before
    done = project("+experiment=parabola", "sweep=random", "sweep.max_trials=2", "sweep.directory=mine", "fresh=true")
    assert done.returncode == 0 and (project.folder / "runs" / "mine.2" / "result.json").exists(), done.stderr
    project("+experiment=parabola")
    (run,) = (project.folder / "runs").glob("parabola-*")
    refused = project("+experiment=parabola", "sweep=grid", f"sweep.directory={run.name}")
    assert refused.returncode == 2 and "an ordinary run" in refused.stderr


def test_searches_side_by_side_in_one_command_are_each_what_they_are_alone(project: Project) -> None:
    done = project("-m", "+experiment=parabola", "sweep=random,grid", "sweep.max_trials=2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [SearchDir(file.parent) for file in (project.folder / "runs").glob("*/workers")]
    assert sorted(search.read_config()["sweep"]["kind"] for search in found) == ["grid", "random"]
    assert [search.result()["trials"] for search in found] == [2, 2]


def test_a_worker_whose_submission_was_cut_short_finds_its_own_task(
    experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, search = experiment("sweep=random"), SearchDir(tmp_path / "runs" / "mnist-0")
    search.create()
    request = plan(one).request
    workers = [Prepared(one, search.create_worker(index), request, ROOT / "jobs" / "mnist.py") for index in (1, 4)]
    submission = WorkersSubmission(workers[0], search=search, workers=workers)
    submission.record_intent()
    links = search.path / "arrays" / submission.token
    assert [(links / str(index)).resolve() for index in (0, 1)] == [worker.run.path for worker in workers]
    monkeypatch.setattr("truba_runner.slurm.jobs.jobs_named", lambda name: ["7"] if name == submission.job_name else [])
    assert [settle(worker.run) for worker in workers] == ["7_0", "7_1"]
    # And again, from its record.
    monkeypatch.setattr("truba_runner.slurm.jobs.jobs_named", lambda name: [])
    assert [settle(worker.run) for worker in workers] == ["7_0", "7_1"]


def test_hyperband_is_told_that_it_takes_no_max_trials(project: Project) -> None:
    done = project("+experiment=parabola", "sweep=hyperband", "sweep.max_trials=200", "dry_run=true")
    (line,) = [line for line in done.stderr.splitlines() if "max_trials" in line]
    assert done.returncode == 0 and "takes no such argument" in line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sweep=hyperban"], "hyperband"),
        (["sweep=random", "sweep.max_trials=0"], "sweep.max_trials=0"),
        (["sweep=random", "sweep.seed=0"], "sweep.seed=1"),
        (["sweep=random", "sweep.directory=a/b"], "sweep.directory"),
        # What is for the runs of -m.
        (["sweep=random", "sweep.canary=true"], "distributes its trials itself"),
        (["sweep=random", "sweep.max_parallel=2"], "Set sweep.workers"),
    ],
)
def test_what_a_search_may_not_say_is_refused_at_once(project: Project, overrides: list[str], told: str) -> None:
    done = project("+experiment=parabola", *overrides)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (project.folder / "runs").exists()


def test_a_refusal_is_turkish_to_its_end(tmp_path: Path) -> None:
    space = "  space:\n    units: {int: {min_value: 1, max_value: 2, stepp: 1}}\n"
    project = Project(tmp_path, EXPERIMENT[: EXPERIMENT.index("  space:")] + space, "tr")
    done = project("+experiment=parabola", "sweep=random", "sweep.workers=0", "sweep.pack=2", "sweep.directory=a/b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "sweep.workers=0: en az 1 olmalıdır. sweep.workers=1 verin.",
        "sweep.directory=a/b: cluster.runs_folder içindeki bir klasörün adı olmalıdır. Yol yazmayın, yalnız adı yazın.",
        "sweep.pack=2: bir arama (sweep=random) denemelerini kendisi dağıtır. "
        "Bunu vermeyin; aynı anda kaç denemenin çalışacağını sweep.workers belirler.",
        "sweep.space.units.int.stepp: int böyle bir parametre almaz. Şunu mu demek istediniz: step?",
    ]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("train.learning_rat: {float: {min_value: 0.1, max_value: 1}}", "Did you mean learning_rate"),
        ("units: {int: {min_value: 1}}", "Add max_value"),
        ("units: {integer: {min_value: 1}}", "one of int, float"),
        ("units: {int: {min_value: 1, max_value: 2, stepp: 1}}", "Did you mean step"),
        ("units: 5", "one of int, float"),
        ("resources.gpus: {choice: [1, 2]}", "not a setting of the training"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_at_once(tmp_path: Path, space: str, told: str) -> None:
    project = Project(tmp_path, EXPERIMENT[: EXPERIMENT.index("  space:")] + f"  space:\n    {space}\n")
    done = project("+experiment=parabola", "sweep=random")
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (project.folder / "runs").exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a small disk needs root")
def test_a_disk_that_is_full_breaks_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=1m none {disk} && exec {sys.executable} {__file__} {disk}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    argv = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def on_a_small_disk(folder: Path) -> None:
    project = Project(folder)
    settings = ["+experiment=parabola", "sweep=hyperband", "sweep.max_epochs=3", "job.options.pause=0.1"]
    process = project.start(*settings)
    wait_until(lambda: project.told())
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(512))
        except OSError:
            pass
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "No space left" in out + err, out + err
    assert "Traceback" not in err, err
    told = project.told()
    (folder / "filler").unlink()
    process = project.start(*settings)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert project.told()[: len(told)] == told and project.result()["trials"] == 6
    assert project.result()["failed"] == 0


if __name__ == "__main__":
    on_a_small_disk(Path(sys.argv[1]))
