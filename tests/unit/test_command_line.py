"""The program as a user types it, in a process of its own: exit status, words, and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def truba(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs `python -m truba_runner` in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "TRUBA_SCRATCH": str(tmp_path / "scratch"),
            "TRUBA_CLUSTER": "local",
            **variables,
        }
        argv = [sys.executable, "-m", "truba_runner", *arguments]
        return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)

    run.folder = folder  # type: ignore[attr-defined]
    return run


REFUSALS = [
    (["+experiment=mnits"], "Did you mean mnist?"),
    (["+experiment=mnist", "resources.gpu=2"], "resources.gpu: there is no such key. Did you mean gpus?"),
    (["+experiment=mnist", "resources.gpus=two"], "resources.gpus"),
    (["+experiment=mnist", "resources.time=soon", "cluster=truba"], "Write it as 90 (minutes)"),
    (["+experiment=mnist", "cluster=turba"], "Did you mean truba?"),
    (["+experiment=mnist", "job.module=mnits"], "Did you mean mnist?"),
    (["+experiment=mnist", "train.seed=[1"], "could not be read"),
    (["experiment=mnist"], "+experiment=mnist"),
    (["statsu"], "Did you mean status or stage?"),
    ([], "Type +experiment=NAME"),
    (["logs", "nothing"], "no run starts with it"),
    (["-m", "+experiment=mnist", "resources.gpus=1,99", "cluster=truba"], "resources.gpus=99"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_wrong_input_is_one_paragraph_and_exit_status_2(truba, arguments: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = truba(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    assert list(truba.folder.iterdir()) == []


def test_a_dry_run_prints_the_script_and_leaves_no_trace(truba, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = truba(
        "+experiment=mnist", "cluster=truba", "resources.gpus=2", "resources.mail_user=me@example.org", "dry_run=true"
    )
    assert done.returncode == 0, done.stderr
    asked = ("--partition=akya-cuda", "--gres=gpu:2", "--cpus-per-task=20", "--time=60", "--requeue")
    for line in (*asked, "--mail-type=END,FAIL", "--mail-user=me@example.org"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "srun --unbuffered" in done.stdout and "-m truba_runner.worker" in done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["work"]


def test_a_dry_run_of_a_sweep_is_an_array_and_leaves_no_trace(truba, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = truba("-m", "+experiment=mnist", "train.seed=range(5)", "cluster=truba", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-4" in done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["work"]


def test_a_users_own_conf_and_jobs_come_first(truba) -> None:  # type: ignore[no-untyped-def]
    (truba.folder / "conf" / "experiment").mkdir(parents=True)
    (truba.folder / "conf" / "experiment" / "own.yaml").write_text(
        "# @package _global_\nname: own\njob: {module: own}\ndata: {name: nothing}\n"
    )
    (truba.folder / "jobs").mkdir()
    (truba.folder / "jobs" / "own.py").write_text("def broken(:\n")
    done = truba("+experiment=own")
    assert done.returncode == 2 and "jobs/own.py:1" in done.stderr
    (truba.folder / "jobs" / "own.py").write_text("")
    assert truba("+experiment=own", "dry_run=true").returncode == 0
    assert truba("+experiment=mnist", "dry_run=true").returncode == 0


def test_hydras_own_options_keep_working(truba) -> None:  # type: ignore[no-untyped-def]
    shown = truba("--cfg", "job", "+experiment=mnist", "train.seed=3")
    assert shown.returncode == 0 and "seed: 3" in shown.stdout and "name: mnist" in shown.stdout
    helped = truba("--help")
    assert helped.returncode == 0 and "experiment: fraud, mnist" in helped.stdout and "dry_run=true" in helped.stdout
    assert "experiment/mnist" in truba("--info", "defaults", "+experiment=mnist").stdout
    completed = truba("-sc", "query=bash", COMP_LINE="truba +experiment=mnist resources.par", COMP_POINT="99")
    assert "resources.partition=" in completed.stdout


def test_status_of_nothing(truba) -> None:  # type: ignore[no-untyped-def]
    assert "no runs yet" in truba("status").stdout
    assert json.loads(truba("status", "--json").stdout) == []


def test_data_that_is_missing_is_told_with_the_command_that_stages_it(truba, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    unreachable = "data.sources.mnist.url=http://127.0.0.1:9/mnist.npz"
    done = truba("+experiment=mnist", "cluster=truba", unreachable)
    assert done.returncode == 2 and "python -m truba_runner stage +experiment=mnist --from mnist.npz" in done.stderr
    assert not (tmp_path / "scratch").joinpath("truba_runner", "runs").exists()


def test_staging_checks_what_it_is_given(truba, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (truba.folder / "mnist.npz").write_bytes(b"not it")
    refused = truba("stage", "+experiment=mnist", "--from", "mnist.npz")
    assert refused.returncode == 1 and "SHA-256" in refused.stderr
    assert not list((truba.folder / "data").iterdir())
    accepted = truba("stage", "+experiment=mnist", "data.sources.mnist.sha256=''", "--from", "mnist.npz", "--json")
    assert accepted.returncode == 0 and json.loads(accepted.stdout)["state"] == "staged"
    assert (truba.folder / "data" / "mnist.npz").read_bytes() == b"not it"
