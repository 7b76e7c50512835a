"""What the drill reports of two runs, and what a run that is to be verified does before it trains."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from searches import Project, wait_until

from truba_runner.commands.drill import _print, _trained, compared
from truba_runner.config.schema import Drill, Experiment
from truba_runner.errors import Failed
from truba_runner.runs.run_directory import RunDir
from truba_runner.submission.outcome import Action, Outcome

pytestmark = pytest.mark.programs

EXPERIMENT = """# @package _global_
name: par
job: {module: nothing, backend: plain, options: {rate: 0.1, pause: 0, hidden: false, clock: false, chance: false}}
data: {name: none}
train: {epochs: 3}
"""


@pytest.fixture
def project(tmp_path: Path, plain_backend: None) -> Project:
    made = Project(tmp_path)
    (tmp_path / "conf" / "experiment" / "par.yaml").write_text(EXPERIMENT)
    return made


def result(project: Project) -> dict[str, Any]:
    (file,) = (project.folder / "runs").glob("par-*/result.json")
    return dict(json.loads(file.read_text()))


def test_what_the_interrupted_run_warned_of_stands_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = RunDir(tmp_path / "whole-0"), RunDir(tmp_path / "cut-0")
    for run, digest in ((whole, "a"), (cut, "b")):
        run.create()
        run.write_history([{"epoch": 1, "loss": 0.5, "seconds": len(digest)}])
        counts = {"restarts": 2, "requeues": 1, "steps_lost": 3, "seconds_restoring": 0.5}
        run.write_result({"steps": 10, "weights_sha256": digest, **counts})
    (cut.logs / "1_0_log.out").write_text("WARNING: All log messages before absl::InitializeLog() is called\nepoch 1\n")
    for start in (2, 3):
        (cut.logs / f"{start}_0_log.out").write_text("epoch 1\nWARNING: the callback Own is started anew\n")
    (cut.logs / "4_0_log.out").write_text("UYARI: kayıt noktası onu bilmiyor\n")
    report = compared(whole, cut)
    assert set(report["warnings"]) == {"WARNING: the callback Own is started anew", "UYARI: kayıt noktası onu bilmiyor"}
    assert (report["same_weights"], report["same_history"]) == (False, True)
    _print(report)
    printed = capsys.readouterr().out
    assert "NO" in printed and "  WARNING: the callback Own is started anew\n" in printed


def test_the_drill_names_what_differs(project: Project) -> None:
    done = project("drill", "+experiment=par", "job.options.hidden=true", "--json")
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == 1 and not report["same_weights"]
    found = report["first_difference"]
    assert (found["path"], found["repeatable"]) == ("weight", True) and found["undisturbed"] != found["resumed"]
    done = project("drill", "+experiment=par", "job.options.hidden=true")
    assert f"At the end of epoch 2 weight is {found['resumed']}" in done.stdout.replace("\n", " "), done.stdout


def test_the_drill_of_a_training_that_goes_on_as_it_was(project: Project) -> None:
    done = project("drill", "+experiment=par", "--json")
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == 0 and report["same_weights"] and report["first_difference"] is None, done.stdout


def test_a_run_that_an_interruption_would_change_does_not_begin(project: Project) -> None:
    done = project("+experiment=par", "checkpoint.verify=true", "job.options.hidden=true")
    assert done.returncode == 1 and "checkpoint.verify: after an interruption" in done.stdout + done.stderr
    (run,) = (project.folder / "runs").glob("par-*")
    assert not list(run.glob("checkpoints")) and not (run / "verify").exists()


def test_a_signal_ends_a_verification_and_the_next_start_makes_it_anew(project: Project) -> None:
    settings = ("+experiment=par", "checkpoint.verify=true")
    process = project.start(*settings, "job.options.pause=0.1")
    told = "par-*/verify/undisturbed/progress.json"
    wait_until(lambda: list((project.folder / "runs").glob(told)))
    (file,) = (project.folder / "runs").glob(told)
    child = json.loads(file.read_text())["pid"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 1 and not (file.parents[1]).exists()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    assert json.loads((file.parents[2] / "progress.json").read_text())["state"] == "interrupted"
    assert project(*settings, "job.options.pause=0.1").returncode == 0
    assert result(project)["verified"]["first_difference"] is None


def test_a_training_that_is_another_one_each_time_is_told_apart(project: Project) -> None:
    done = project("+experiment=par", "checkpoint.verify=true", "job.options.chance=true")
    assert done.returncode == 1 and "this training gives another result each time" in done.stdout + done.stderr


def test_a_clock_in_a_state_is_no_difference(project: Project) -> None:
    done = project("+experiment=par", "checkpoint.verify=true", "job.options.clock=true")
    assert done.returncode == 0 and "an interruption changes nothing" in done.stdout, done.stdout + done.stderr
    assert result(project)["verified"]["seconds"] > 0


@pytest.mark.parametrize("requeue", [False, True])
def test_where_jobs_do_not_come_back_the_drill_submits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    run, submitted = RunDir(tmp_path / "cut-0"), []
    run.create()

    def launched(experiment: Experiment, selector: str) -> Outcome:
        submitted.append((experiment.fresh, experiment.launcher.wait))
        if len(submitted) == 3:
            run.write_result({"metrics": {}})
        return Outcome(run.id, str(run.path), Action.FAILED)

    monkeypatch.setattr("truba_runner.launch.run.launch", launched)
    experiment = Experiment(name="x")
    experiment.cluster.scheduler, experiment.cluster.requeue = "slurm", requeue
    if requeue:
        with pytest.raises(Failed, match="did not finish"):
            _trained(experiment, "cut", Drill(2, 4), [])
    else:
        assert _trained(experiment, "cut", Drill(2, 4), []).id == run.id
    # Only the first is a new run.
    assert submitted == [(True, True), (False, True), (False, True)][: 1 if requeue else 3]
