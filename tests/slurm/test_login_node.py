"""README's "On TRUBA", as a user there: the one file, the login node's own Python 3.9, a bare environment, modules."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from login_node import VERSION, LoginNode
from truba import ROOT, events

from truba_runner.code import bundle
from truba_runner.errors import Failed
from truba_runner.runs.run_directory import RunDir

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# TRUBA's config says what its GPUs are, and the nodes of the test cluster have no driver.
NO_DRIVER = "cluster: {node_check: {gpus: false}}\n"
MODULE = "apps/truba-ai/gpu-2024.0"
# A conda that has nothing but its hook.
CONDA = """#!/bin/bash
[ "$*" = "shell.posix hook" ] || exit 1
echo 'conda() { [ "$1" = activate ] && [ -d "$2" ] && export CONDA_PREFIX="$2" PATH="$2/bin:$PATH"; }'
"""


class Ayse:
    """Her project, with the experiment that README.md tells her to write, and the one file in her home."""

    def __init__(self, login: LoginNode) -> None:
        self.login, self.cluster = login, login.cluster
        self.project = login.home / "project"
        self.runs = self.cluster.scratch() / "truba_runner" / "runs"
        for folder in ("jobs", "conf/experiment"):
            self.cluster.run(["mkdir", "-p", str(self.project / folder)])
        (self.project / "jobs" / "flowers.py").write_text(_block("python", "def build_model"))
        experiment = _block("yaml", "name: flowers") + NO_DRIVER
        (self.project / "conf" / "experiment" / "flowers.yaml").write_text(experiment)
        try:
            (login.home / "truba.pyz").write_bytes(bundle.content(pinned=True))
        except Failed as failed:
            pytest.skip(str(failed))

    def __call__(self, *arguments: str, status: int = 0, **variables: str) -> str:
        """Return what a command prints, on both streams."""
        done = self.login("python3", "../truba.pyz", *arguments, cwd=self.project, **variables)
        printed = done.stdout + done.stderr
        assert done.returncode == status and "Traceback" not in printed, (arguments, done.returncode, printed)
        return printed

    def submit(self, *arguments: str) -> tuple[RunDir, str]:
        """Submit a run; return it and its job's id."""
        printed = self("+experiment=flowers", *arguments)
        said = re.search(r"submitted (flowers-\w+) as job (\d+) to akya-cuda", printed)
        assert said and f"Python {HERE}." in printed, printed
        return RunDir(self.runs / said[1]), said[2]


def _block(language: str, words: str) -> str:
    """Return the block of README.md with these words; its Turkish has the same (tests/unit/test_pages.py)."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(str(block) for block in blocks if words in block)


@pytest.fixture(scope="module")
def ayse(cluster: Cluster) -> Iterator[Ayse]:
    login = LoginNode(cluster)
    try:
        cluster.module(MODULE, Path(sys.executable).parent)
        cluster.module("apps/truba-ai/cpu-2024.0", Path("/usr/bin"))
        cluster.module("comp/python/3.12.0", Path("/usr/bin"))
        yield Ayse(login)
    finally:
        login.close()


def test_the_login_node_is_as_bare_as_trubas(ayse: Ayse) -> None:
    def ask(program: str) -> subprocess.CompletedProcess[str]:
        return ayse.login("python3", "-c", program, cwd=ayse.project)

    assert ask("import sys; print('%d.%d' % sys.version_info[:2])").stdout == f"{VERSION}\n"
    for name in ("_ctypes", "yaml", "hydra", "truba_runner"):
        assert f"No module named '{name}'" in ask(f"import {name}").stderr
    assert ayse.login("bash", "-c", "type module", cwd=ayse.project).returncode != 0
    assert MODULE in ayse.login("bash", "-lc", "module -t avail 2>&1", cwd=ayse.project).stdout


def test_a_run_from_its_submission_to_its_report(ayse: Ayse) -> None:
    plan = ayse("+experiment=flowers", "dry_run=true")
    assert "#SBATCH --partition=akya-cuda" in plan and f"module load {MODULE}" in plan
    run, job_id = ayse.submit("train.epochs=2")
    # From the same bare environment, of which the job gets a copy: its script finds `module` by the site's profile.
    ayse.cluster.wait_for_state(job_id, "COMPLETED")
    (started,) = [event for event in events(run.path) if event["event"] == "started"]
    assert started["python"].startswith(f"{HERE}.")
    (row,) = json.loads(ayse("status", "--json", run.id))
    assert row["state"] == "COMPLETED" and row["metrics"]["val_accuracy"] > 0.3
    assert "bitti" in ayse("why", run.id, TRUBA_LANG="tr") and "Trainable params" in ayse("logs", run.id)
    assert run.id in ayse("pull", "--list", run.id), "the login node's part of truba pull"
    assert run.id in ayse("+experiment=flowers", "train.epochs=2"), "not trained twice"


def test_another_that_waits_is_explained_and_cancelled(ayse: Ayse) -> None:
    run, job_id = ayse.submit("train.seed=2", "+resources.sbatch.begin=now+1hour")
    ayse.cluster.wait_for_reason(job_id)
    assert "BeginTime" in ayse("why", run.id) and "nothing yet" in ayse("logs", run.id, status=1)
    assert f"cancelled {run.id}" in ayse("cancel", run.id)
    assert ayse.cluster.states(job_id) == ["CANCELLED"] and "CANCELLED" in ayse("status", run.id)


def test_a_sweep_in_a_conda_environment_on_top_of_modules(ayse: Ayse, cluster: Cluster) -> None:
    conda = cluster.folder / "login" / "conda"
    (conda / "bin").mkdir(parents=True)
    (conda / "bin" / "conda").write_text(CONDA)
    (conda / "bin" / "conda").chmod(0o755)
    cluster.module("comp/python/miniconda3", conda / "bin")
    environment = cluster.folder / "login" / "net"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (environment / "lib" / f"python{HERE}" / "site-packages" / "more.pth").write_text(sysconfig.get_path("purelib"))
    (environment / "conda-meta").mkdir()
    chosen = ["environment=conda", f"environment.conda={environment}"]
    swept = ayse("-m", "+experiment=flowers", "train.seed=3,4", "train.epochs=1", *chosen)
    said = re.search(r"submitted 2 jobs as array (\d+)", swept)
    assert said and f"Python {HERE}." in swept, swept
    cluster.wait_for_state(said[1], "COMPLETED")
    (sweep,) = re.findall(r"^(flowers-sweep-\w+): ", swept, re.MULTILINE)
    assert "2 COMPLETED" in ayse("status", sweep)


def test_what_is_missing_is_told_with_what_is_there(ayse: Ayse) -> None:
    told = ayse("+experiment=flowers", "environment=module", "environment.modules=[comp/python/3.12.2]", status=2)
    assert "Did you mean comp/python/3.12.0" in told
    told = ayse("tensorboard", status=1)
    assert f"apps/truba-ai/cpu-2024.0, {MODULE}" in told
    # What it says to type is what can be typed there.
    told = ayse("+experiment=mnist", status=2)
    assert "python3 ../truba.pyz stage +experiment=mnist --from mnist.npz" in told
