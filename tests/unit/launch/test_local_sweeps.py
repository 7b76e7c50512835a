"""Whole sweeps on this machine, from the command line: ended and given again, refused, and looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from searches import EXPERIMENT as PARABOLA
from searches import Project, wait_until

from truba_runner.cli.main import main

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("plain_backend")]

EXPERIMENT = """# @package _global_
name: par
job: {module: nothing, backend: plain, options: {rate: 0.1, until: ''}}
data: {name: none}
train: {epochs: 2}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    (tmp_path / "conf" / "experiment" / "par.yaml").write_text(EXPERIMENT)
    return made


def sweeps(project: Project) -> list[str]:
    return [path.name for path in (project.folder / "runs" / ".sweeps").iterdir()]


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A management command in this process: its exit status, and what it printed."""

    def give(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(arguments)
        told = capsys.readouterr()
        return status, told.out + told.err

    return give


def rows(look: Any, sweep: str) -> list[dict[str, Any]]:
    status, text = look("status", sweep, "--json")
    assert status == 0, text
    return list(json.loads(text)["runs"])


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_told_to_end_begins_no_other_run(project: Project, look: Any, word: signal.Signals) -> None:
    until = project.folder / "until"
    settings = ["-m", "+experiment=par", "train.seed=range(3)", f"job.options.until={until}"]
    # Tests that run in the background are deaf to Ctrl-C, and would hand that down.
    argv = ["env", "--default-signal=INT", sys.executable, "-m", "truba_runner", *settings]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, cwd=project.folder, env=project.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    begun = project.folder / "runs"
    wait_until(lambda: list(begun.glob("par-*/history.csv")))
    if word is signal.SIGTERM:
        process.send_signal(word)
    else:
        # A terminal tells all that it started.
        os.killpg(process.pid, word)
    out, err = process.communicate(timeout=240)
    assert (
        process.returncode == 1
        and "3 runs, 1 interrupted, 2 not started" in out
        and "the command was interrupted" in err
    ), out + err
    (sweep,) = sweeps(project)
    assert [row["state"] for row in rows(look, sweep)] == ["INTERRUPTED", "NOT_BEGUN", "NOT_BEGUN"]
    until.touch()
    done = project(*settings)
    assert done.returncode == 0 and "3 runs, 3 trained" in done.stdout, done.stderr
    first = json.loads((begun / rows(look, sweep)[0]["run"] / "result.json").read_text())
    assert (first["restarts"], first["steps_lost"]) == (1, 0)


def test_code_that_has_changed_is_told_of_once_for_all_runs(project: Project) -> None:
    assert project("-m", "+experiment=par", "train.seed=1,2").returncode == 0
    (project.folder / "jobs" / "nothing.py").write_text("changed = True\n")
    done = project("-m", "+experiment=par", "train.seed=1,2,3")
    assert done.returncode == 0 and "2 finished before, 1 trained" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "and 1 other run of the sweep were trained with" in line


def test_sweeps_that_share_runs_are_each_shown_whole_and_none_is_taken_for_a_run(project: Project, look: Any) -> None:
    for seeds in ("1,2", "2,3,2"):
        done = project("-m", "+experiment=par", f"train.seed={seeds}", "sweep.pack=2")
        assert (
            done.returncode == 0
            and "sweep.pack: no effect, as on this machine the runs train one after the other" in done.stderr
        )
    assert (
        "several choices of the sweep give the same run" in done.stderr and ": 2 runs, 1 finished before" in done.stdout
    )
    assert look("status")[1].count("2 COMPLETED") == 2
    one, _ = sweeps(project)
    for command in ("logs", "best"):
        status, told = look(command, one)
        assert status == 2 and f"{one}: it is a sweep" in told and f"truba status {one} lists its runs" in told
    status, told = look("status", one, "--sort", "train.sed")
    assert status == 2 and "has such a column. Did you mean train.seed" in told
    assert "Did you mean par-sweep" in look("status", "par-swep")[1]
    picture = project.folder / "new" / "picture.png"
    assert look("status", one, "--plot", str(picture))[0] == 0 and picture.exists()
    # Who reads no further is no reason to complain.
    argv = f"{sys.executable} -m truba_runner status --json | true"
    quiet = subprocess.run(argv, shell=True, cwd=project.folder, env=project.environment, capture_output=True)
    assert not quiet.stderr, quiet.stderr


def test_a_plan_names_each_run_once_and_not_a_thousand(project: Project) -> None:
    project.environment |= {"TRUBA_CLUSTER": "truba", "TRUBA_SCRATCH": str(project.folder)}
    own = ["-m", "+experiment=par", "dry_run=true", "resources.account=me", "cluster.max_array_size=500"]
    twice = project(*own, "resources.gpus=1,2")
    assert twice.returncode == 0 and twice.stdout.count("plan of") == twice.stdout.count("plan of 1 run ") == 1
    many = project(*own, "train.seed=range(600)", "sweep.max_parallel=1")
    assert "plan of 500 runs" in many.stdout and "and 488 more" in many.stdout and many.stdout.count("par-") < 40
    assert "WARNING: sweep.max_parallel=1: the runs request different resources and need 2 job arrays" in many.stderr


# -- sweeps of searches ------------------------------------------------------------------------------------------


def test_a_sweep_of_searches_has_a_table_and_is_checked_before_the_first_begins(project: Project, look: Any) -> None:
    own = ["-m", "+experiment=parabola", "sweep.max_trials=2"]
    refused = project(*own, "sweep=random,grid", "sweep.directory=mine")
    assert refused.returncode == 2 and "sweep.directory=mine: several searches of this command" in refused.stderr
    assert not (project.folder / "runs").exists()
    done = project(*own, "sweep=random,grid", "sweep.best_models=0,1")
    assert done.returncode == 0 and "2 runs, 2 trained" in done.stdout, done.stderr
    (sweep,) = sweeps(project)
    found = rows(look, sweep)
    assert [row["values"] for row in found] == [{"sweep": kind, "sweep.best_models": 0} for kind in ("random", "grid")]
    assert [(row["state"], row["trials_told"], row["trials_begun"]) for row in found] == [("COMPLETED", 2, 2)] * 2
    scores = [json.loads((Path(row["directory"]) / "result.json").read_text())["metrics"]["val_loss"] for row in found]
    assert [row["best"] for row in found] == scores
    _, best = look("status", sweep, "--best", "val_loss")
    assert "trials" in best and found[scores.index(min(scores))]["run"] in best and "2/2" in best
    assert "trials_told" in look("status", sweep, "--csv")[1]
    assert look("best", found[0]["run"], "-n", "0")[0] == 2
    status, told = look("status", found[0]["run"], "--csv")
    assert status == 2 and f"truba best {found[0]['run']} -n N" in told


def test_a_search_that_was_given_up_goes_on_once_more_may_fail_and_not_with_other_code(tmp_path: Path) -> None:
    space = "  space:\n    job.options.fail: {choice: [on purpose, '']}\n"
    project = Project(tmp_path, PARABOLA[: PARABOLA.index("  space:")] + space)
    own = ["+experiment=parabola", "sweep=grid"]
    done = project(*own, "sweep.max_consecutive_failed_trials=1")
    assert done.returncode == 1 and "ValueError: on purpose" in done.stderr, done.stderr
    refused = project(*own, "sweep.max_consecutive_failed_trials=1")
    assert refused.returncode == 2 and "was stopped: Number of consecutive failures" in refused.stderr
    assert "A larger sweep.max_consecutive_failed_trials (now 1) resumes it" in refused.stderr
    (project.folder / "jobs" / "nothing.py").write_text("changed = True\n")
    refused = project(*own, "sweep.max_consecutive_failed_trials=2")
    assert refused.returncode == 2 and "1 of its trials were started with another version of" in refused.stderr
    done = project(*own, "sweep.max_consecutive_failed_trials=2", "accept_changed_code=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.result()["trials"], project.result()["failed"]) == (2, 1)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sweep.seed=1", "there is nothing to search: build_model in"),
        ("+sweep.space.units.choice=[1,2]", "Name a key of the config, such as job.options.units."),
    ],
)
def test_a_search_of_nothing_is_refused_before_it_is_submitted(project: Project, override: str, told: str) -> None:
    refused = project("+experiment=par", "sweep=random", override)
    assert refused.returncode == 2 and told in refused.stderr, refused.stderr
    assert not (project.folder / "runs").exists()
