"""Runs, a sweep and a search that an earlier build began are shown as it showed them, and go on.

`earlier_build.tar.xz` was made by the build of commit 3323874, whose modules still lay flat: its runs folder, and what
its `status --json` said of all runs and of the sweep. Each run that is not over was ended with SIGKILL.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from searches import EXPERIMENT, Project

ARCHIVE = Path(__file__).with_name("earlier_build.tar.xz")
COMMON = ("+experiment=parabola", "finish.plots=false")
INTERRUPTED = (*COMMON, "name=interrupted", "job.options.pause=0.3")
SWEEP = ("-m", *COMMON, "name=swept", "job.options.pause=0.2")
SEARCH = (*COMMON, "name=searched", "sweep=random", "sweep.max_trials=4", "job.options.pause=0.05")

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("plain_backend")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project as it was, with the runs that it had."""
    made = Project(tmp_path, EXPERIMENT.replace("epochs: 2", "epochs: 3"))
    subprocess.run(["tar", "-xJf", str(ARCHIVE), "--no-same-owner", "-C", str(tmp_path)], check=True)
    return made


def run_of(project: Project, name: str) -> Path:
    (found,) = (project.folder / "runs").glob(f"{name}-*")
    return found


def shown(project: Project, *arguments: str) -> Any:
    done = project("status", *arguments, "--json", "--runs", str(project.folder / "runs"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def facts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on where and since when the runs lie there, and on the words of the build."""
    known = [{key: value for key, value in row.items() if key not in ("directory", "why")} for row in rows]
    return sorted(known, key=lambda row: str(row["run"]))


def test_status_tells_of_them_what_it_told(project: Project) -> None:
    before = json.loads((project.folder / "status.json").read_text())
    assert {row["state"] for row in before} == {"COMPLETED", "FAILED", "LOST"}
    now = shown(project)
    assert facts(now) == facts(before)
    assert {row["run"] for row in now if row["why"]} == {row["run"] for row in before if row["why"]}
    sweep = json.loads((project.folder / "sweep.json").read_text())
    found = shown(project, sweep["sweep"])
    assert facts(found["runs"]) == facts(sweep["runs"])


def test_every_command_that_reads_takes_them(project: Project) -> None:
    runs = ("--runs", str(project.folder / "runs"))
    for name in ("finished", "failed", "interrupted", "searched"):
        for command in (["logs"], ["why"], ["report", "--out", str(project.folder / f"{name}.html")]):
            done = project(command[0], run_of(project, name).name, *command[1:], *runs)
            assert done.returncode == 0 and "DAMAGED" not in done.stdout, (command, done.stdout, done.stderr)
    finished = run_of(project, "finished")
    assert project("clean", "--yes", *runs).returncode == 0
    assert [file.name for file in (finished / "checkpoints").iterdir()] == ["best.ckpt"]
    assert list(run_of(project, "interrupted").glob("checkpoints/checkpoint-*.ckpt")), "it needs it to resume"


def test_an_interrupted_run_resumes_and_a_finished_one_does_not_begin_anew(project: Project) -> None:
    run = run_of(project, "interrupted")
    done = project(*INTERRUPTED)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/3" not in done.stdout and "epoch 2/3" in done.stdout
    resumed = json.loads((run / "result.json").read_text())
    shutil.rmtree(run)
    assert project(*INTERRUPTED).returncode == 0
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == resumed["weights_sha256"]
    again = project(*COMMON, "name=finished")
    assert again.returncode == 0 and "epoch 1/3" not in again.stdout


def test_a_sweep_goes_on_with_what_is_left(project: Project) -> None:
    done = project(*SWEEP, "job.options.rate=0.1,oops,0.2,0.3")
    assert done.returncode == 1, "one of them fails again"
    (sweep,) = (project.folder / "runs" / ".sweeps").iterdir()
    rows = shown(project, sweep.name)["runs"]
    assert [row["state"] for row in rows] == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert done.stdout.count("epoch 1/3") == 1, "the first is finished, and the third resumes"


@pytest.mark.skipif(importlib.util.find_spec("keras_tuner") is None, reason="needs keras_tuner")
def test_a_search_keeps_the_trials_that_it_has(project: Project) -> None:
    search = run_of(project, "searched")
    before = json.loads((search / "state.json").read_text())["trials"]
    first = (search / "trials" / "0" / "result.json").read_bytes()
    done = project(*SEARCH)
    assert done.returncode == 0, done.stderr
    after = json.loads((search / "state.json").read_text())["trials"]
    assert len(after) == 4 and after["0"] == before["0"]
    assert (search / "trials" / "0" / "result.json").read_bytes() == first
