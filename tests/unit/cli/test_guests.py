"""What others bring along: Hydra's idioms, variables of a site, keys of any kind: it works, or is refused in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import truba

from truba_runner.cli import sweeper
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.slurm import commands, jobs
from truba_runner.sweeps import sweeper_job


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folders = {name: str(tmp_path / name) for name in ("XDG_STATE_HOME", "TRUBA_SCRATCH")}
    return {**os.environ, **folders, "TRUBA_CLUSTER": "local", "COLUMNS": "200"}


@pytest.mark.parametrize("batches", [[], ["hydra.sweeper.max_batch_size=2"]], ids=["together", "in batches"])
def test_a_run_of_a_sweep_has_its_number(tmp_path: Path, environment: dict[str, str], batches: list[str]) -> None:
    swept = ["train.seed=7,8,9", "name=n${hydra:job.num}_${train.seed}", "data.name=digits", *batches]
    done = truba("-m", "+experiment=mnist", *swept, "dry_run=true", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert all(done.stdout.count(f" {name}-") == 1 for name in ("n0_7", "n1_8", "n2_9"))


REFUSED = [
    (["-m", "name=n${hydra.job.num}", "train.seed=1,2"], "Hydra's own values are written ${hydra:KEY}"),
    (["-m", "hydra.sweep.subdir=${hydra.job.num}", "train.seed=1,2"], "cluster.runs_folder=FOLDER sets where runs are"),
    (["hydra.run.dir=x"], "hydra.run.dir=x: a run's files are in its own directory"),
    (["hydra.output_subdir=.hydra"], "hydra.output_subdir=.hydra: a run's files"),
    (["hydra/job_logging=default"], "it writes a file into the working directory"),
    (["hydra.verbose=1"], "hydra.verbose=1: Hydra cannot use it"),
    (["-m", "hydra/sweeper=basic", "train.seed=1,2"], "it writes multirun.yaml"),
    (["-m", "hydra/launcher=submitit_local", "train.seed=1,2"], "Leave hydra/launcher out"),
    (["-m", "hydra.sweeper.max_batch_size=0", "train.seed=1,2"], "hydra.sweeper.max_batch_size=0: Hydra cannot use"),
    (["--experimental-rerun", "x"], "it would execute whatever a pickle file contains"),
    (["--experimental-rerun"], "expected one argument"),
    (["--config-name", "nothing"], "nothing.yaml: conf has no such file. There are: config"),
    (["--cfg", "nothing"], "--hydra-help lists them"),
    (["environment=null"], "environment=null: the config group conf/environment takes the name of one of its files"),
    (["~resources"], "~resources: a run needs this key"),
    (["checkpoint=${train}"], "checkpoint: it is a section with its own keys, and got train"),
    (["train.callbacks=${train}"], "train.callbacks: it takes a list. Write it in brackets"),
    (
        ["environment.setup=[{class_name: Adam}]"],
        "environment.setup: each item of this list is a text, and it got {",
    ),
    (["data.sources=${name}"], "data.sources: it takes names with values, and got mnist"),
    (["train.epochs=???"], "train.epochs: it has no value ('???'). Set train.epochs=VALUE"),
    (["name=" + "[" * 3000 + "]" * 3000], "refers to itself, or is nested too deeply"),
    (["name=" + "a" * 300], "a file name may have at most 255 bytes"),
    (["cluster=truba", "cluster.scratch=scratch"], "cluster.scratch=scratch: jobs start in another folder"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(row[0])[:40] for row in REFUSED])
def test_what_hydra_would_do_beside_a_run_is_refused_before_it_does(
    tmp_path: Path, environment: dict[str, str], arguments: list[str], words: str
) -> None:
    options = [text for text in arguments if text.startswith("-")]
    options += [text for text in arguments if text in {"x", "nothing"}]
    overrides = [text for text in arguments if text not in options]
    experiment = [] if "--experimental-rerun" in options else ["+experiment=mnist"]
    done = truba(*options, *experiment, *overrides, cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["/tmp/[old]", "[/red]", ":smile:"])
def test_a_plan_shows_what_was_typed(tmp_path: Path, environment: dict[str, str], word: str) -> None:
    typed = [f"data.folder='{word}'", f"resources.mail_user='{word}'", "dry_run=true"]
    done = truba("+experiment=mnist", *typed, cwd=tmp_path, environment=environment)
    assert done.returncode == 0 and done.stdout.count(word) == 2


def test_an_empty_scratch_variable_is_none(tmp_path: Path, environment: dict[str, str]) -> None:
    asked = ["+experiment=mnist", "cluster=truba", "dry_run=true"]
    done = truba(*asked, cwd=tmp_path, environment={**environment, "TRUBA_SCRATCH": ""})
    assert done.returncode == 0 and "/arf/scratch/" in done.stdout


def test_a_cluster_that_the_variable_misspells_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    done = truba("+experiment=mnist", cwd=tmp_path, environment={**environment, "TRUBA_CLUSTER": "turba"})
    assert "TRUBA_CLUSTER=turba: conf/cluster has no such file. Did you mean truba?" in done.stderr


def test_numbers_that_json_has_no_word_for_stay_apart(tmp_path: Path) -> None:
    sweep = SweepDir.of(tmp_path, "s-sweep-0")
    values = [float("nan"), float("inf"), float("-inf"), None, 1.5]
    sweep.describe([Member(f"run-{number}", {"x": value}) for number, value in enumerate(values)])
    assert [member.values["x"] for member in sweep.members()] == ["nan", "inf", "-inf", None, 1.5]


def test_keys_of_several_kinds_have_an_order_and_the_others_their_id() -> None:
    mixed = Experiment(name="a")
    mixed.train.class_weight = {"a": 2.0, 0: 1.0, None: 3.0}
    turned = Experiment(name="a")
    turned.train.class_weight = {None: 3.0, 0: 1.0, "a": 2.0}
    assert run_id(mixed) == run_id(turned)
    numbers = Experiment(name="a")
    numbers.train.class_weight = {10: 1.0, 2: 1.0}
    # As it was before keys of several kinds had an order.
    assert run_id(numbers) == "a-c19c30db"


def test_another_plugin_that_cannot_be_imported_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    """As those of nevergrad and ax are from Python 3.11 on: Hydra imports every one, whatever is asked of it."""
    plugin = tmp_path / "site" / "hydra_plugins" / "hydra_others_sweeper"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").touch()
    (plugin / "config.py").write_text("raise ValueError('mutable default for field optim')\n")
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[3]), str(tmp_path / "site")])
    done = subprocess.run(
        [sys.executable, "-m", "truba_runner", "+experiment=mnist"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hydra_plugins.hydra_others_sweeper: Hydra imports all plugins of the environment")
    assert "mutable default for field optim" in done.stderr and "Uninstall it" in done.stderr


def test_a_dry_run_of_a_sweeper_that_wants_values_ends_with_its_first_runs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    plugin = tmp_path / "site" / "hydra_plugins" / "optuna_like"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(SWEEPER)
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[3]), str(tmp_path / "site")])
    asked = ["+experiment=mnist", "hydra/sweeper=optuna_like", "data.name=digits", "launcher.metric=loss"]
    done = subprocess.run(
        [sys.executable, "-m", "truba_runner", "-m", *asked, "launcher.wait=true", "dry_run=true"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan of 1 run") == 1 and done.stdout.endswith("later ones by their values\n")


SWEEPER = """
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store(group="hydra/sweeper", name="optuna_like", node={"_target_": f"{__name__}.Asking"})


class Asking(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        for number, seed in enumerate((1, 2)):
            (one,) = self.launcher.launch([[*arguments, f"train.seed={seed}"]], initial_job_idx=number)
            float(one.return_value)
"""


def test_a_sweepers_job_runs_the_command_as_a_login_node_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    run = RunDir(tmp_path / "sweeper")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", project=str(tmp_path), command=["-m"]))
    seen: dict[str, str] = {}

    def command(arguments: list[str]) -> int:
        seen.update(os.environ)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("truba_runner.cli.main.main", command)
    given = {"SLURM_JOB_ID": "7", "SLURM_CPU_BIND": "none", "SBATCH_MEM_BIND": "none", "SRUN_DEBUG": "3"}
    for name, value in {**given, "SLURM_CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(name, value)
    assert sweeper.main([str(run.path)]) == 0
    about_slurm = {name for name in seen if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    assert about_slurm == {"SLURM_CONF"} and seen[sweeper_job.INSIDE] == "1"
    monkeypatch.delenv(sweeper_job.INSIDE)


@pytest.mark.parametrize("requeue", [True, False])
def test_a_sweepers_job_goes_back_to_the_queue_where_the_site_allows_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_signals: None,
    requeue: bool,
) -> None:
    run = RunDir(tmp_path / "sweeper")
    run.create()
    request = {"requeue": requeue}
    run.append_submission(Event(Kind.INTENT, token="t", project=str(tmp_path), command=["-m"], request=request))
    requeued: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(sweeper_job.INSIDE, "")
    monkeypatch.setattr(jobs, "would_end_for_good", lambda job_id: True)
    monkeypatch.setattr(commands, "requeue", requeued.append)
    monkeypatch.setattr("truba_runner.cli.main.main", lambda arguments: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        sweeper.main([str(run.path)])
    assert left.value.code == 128 + signal.SIGTERM and requeued == (["7"] if requeue else [])
    assert ("the same command resumes the run" in capsys.readouterr().err) != requeue
