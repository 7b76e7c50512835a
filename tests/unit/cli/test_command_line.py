"""The program as a user types it: exit status, words, and no traceback; each kind of it in a process of its own too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import truba as in_process

from truba_runner.cli.main import commands, main

ROOT = Path(__file__).resolve().parents[3]


class Command:
    """The command line in a folder that is empty at first: called here, and with `process` as a process of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "work"
        self.folder.mkdir()
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "TRUBA_SCRATCH": str(tmp_path / "scratch"),
            "TRUBA_CLUSTER": "local",
        }

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return in_process(*arguments, cwd=self.folder, environment={**self._environment, **variables})

    def process(self, *arguments: str, to_nobody: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a process; with `to_nobody`, its standard output is a pipe whose reader has ended."""
        argv, environment = [sys.executable, "-m", "truba_runner", *arguments], {**self._environment, **variables}
        reading, writing = os.pipe()
        os.close(reading)
        try:
            return subprocess.run(
                argv, cwd=self.folder, env=environment, stdout=writing if to_nobody else subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, timeout=240,
            )  # fmt: skip
        finally:
            os.close(writing)


@pytest.fixture
def truba(tmp_path: Path) -> Command:
    return Command(tmp_path)


REFUSALS = [
    (["+experiment=mnits"], "Did you mean mnist?"),
    (["+experiment=mnist", "resources.gpu=2"], "resources.gpu: there is no such key. Did you mean gpus?"),
    (["+experiment=mnist", "resources.gpus=two"], "resources.gpus"),
    (["+experiment=mnist", "resources.time=soon", "cluster=truba"], "Write it as 90 (minutes)"),
    (["+experiment=mnist", "cluster=turba"], "Did you mean truba?"),
    (["+experiment=mnist", "job.module=mnits"], "Did you mean mnist?"),
    (["+experiment=mnist", "train.seed=[1"], "train.seed=[1: it is not a valid KEY=VALUE"),
    (["experiment=mnist"], "+experiment=mnist"),
    (["+experiment=mnist", "+train.epoch=3"], "train.epoch: there is no such key. Did you mean epochs?"),
    (["+experiment=mnist", "environment.modules=a/1"], "environment.modules: it takes a list. Write it in brackets: "),
    (["+experiment=mnist", "++foo=1"], "foo: there is no such key"),
    (["+experiment=mnist", "train.learning_rate=-1"], "must be positive"),
    (["+experiment=mnist", "train.seed=-1"], "must be 0 or more"),
    (["+experiment=mnist", "name=şöyle"], "in quotes"),
    (["stage", "+experiment=mnist", "--from", "/nonexistent"], "there is no such file"),
    (["stage", "+experiment=mnist", "data.name=digits"], "nothing to stage"),
    (["statsu"], "Did you mean status or stage?"),
    ([], "Type +experiment=NAME"),
    (["logs", "nothing"], "no run starts with it"),
    (["-m", "+experiment=mnist", "resources.gpus=1,99", "cluster=truba"], "resources.gpus=99"),
]


def test_an_experiment_without_its_first_line_is_told_so(truba: Command) -> None:
    (truba.folder / "conf" / "experiment").mkdir(parents=True)
    (truba.folder / "conf" / "experiment" / "own.yaml").write_text("name: own\ndata: {name: digits}\n")
    done = truba("+experiment=own", "cluster=local")
    assert done.returncode == 2 and "Make # @package _global_ the first line" in done.stderr


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_wrong_input_is_one_paragraph_and_exit_status_2(truba: Command, arguments: list[str], words: str) -> None:
    done = truba(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    assert list(truba.folder.iterdir()) == []


# What Hydra cannot compose, what breaks a rule in a sweep, what a management command does not find.
@pytest.mark.parametrize("arguments", [REFUSALS[0][0], REFUSALS[-2][0], REFUSALS[-1][0]], ids=" ".join)
def test_a_process_says_and_ends_as_the_call_of_these_tests_does(truba: Command, arguments: list[str]) -> None:
    done, called = truba.process(*arguments), truba(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", called.stderr)


IN_TURKISH = [
    (
        ["+experiment=mnist", "cluster=truba", "resources.gpus=9", "resources.time=9d"],
        [
            "resources.time=9d: akya-cuda kuyruğu en çok 3-00:00:00 süreye izin verir (conf/cluster/truba.yaml "
            "(max_time)). resources.time=3-00:00:00 ya da daha azını verin (kısa işler daha erken başlar) veya iş "
            "zinciri için resources.segment=3-00:00:00 verin.",
            "resources.gpus=9: akya-cuda kuyruğunun bir düğümünde 4 GPU var. resources.gpus=4 ya da daha azını verin "
            "(düğüm başına sayılır).",
        ],
    ),
    (
        ["+experiment=mnist", "resources.gpu=2", "data.workers=3"],
        [
            "resources.gpu: böyle bir anahtar yok. Şunu mu demek istediniz: gpus?",
            "data.workers: bu bir fastai ayarıdır, arka uç ise keras. Bunu vermeyin ya da job.backend=fastai verin.",
        ],
    ),
    (
        ["-m", "+experiment=mnist", "train.seed=1,-1"],
        [
            "train.seed=-1: en az 0 olmalıdır. train.seed=1 verin. Hiçbir şey gönderilmedi; 2 eğitimin 1 tanesinde "
            "bu sorun var: train.seed=-1.",
        ],
    ),
]


@pytest.mark.parametrize(("arguments", "lines"), IN_TURKISH, ids=["plan", "key", "sweep"])
def test_a_refusal_is_turkish_from_its_first_word_to_its_last(
    truba: Command, arguments: list[str], lines: list[str]
) -> None:
    done = truba(*arguments, TRUBA_LANG="tr")
    assert (done.returncode, done.stderr.splitlines()) == (2, lines)


def test_a_dry_run_prints_the_script_and_leaves_no_trace(truba: Command, tmp_path: Path) -> None:
    done = truba.process(
        "+experiment=mnist", "cluster=truba", "resources.gpus=2", "resources.mail_user=me@example.org", "dry_run=true",
        "resources.signal_seconds=120",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (
        "--partition=akya-cuda",
        "--gres=gpu:2",
        "--cpus-per-task=20",
        "--time=60",
        "--requeue",
        "--signal=USR2@120",
    )
    for line in (*asked, "--mail-type=END,FAIL", "--mail-user=me@example.org"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "srun --unbuffered" in done.stdout and "-m truba_runner.worker" in done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["work"]


SEVERAL_WRONG = [
    # Of one search, then of a sweep's runs: keys and types that cannot be composed, and rules.
    (
        [
            "+experiment=mnist",
            "sweep=random",
            "sweep.max_trial=3",
            "resources.gpus=two",
            "sweep.seed=0",
            "resources.nodes=2",
        ],
        ["sweep.max_trial: there is no such key", "resources.gpus: ", "Set sweep.seed=1", "Set resources.nodes=1"],
    ),
    (
        ["-m", "+experiment=mnist", "train.epochs=1,two,0", "train.batch_size=64,-1"],
        ["'two'", "train.epochs=0: ", "train.batch_size=-1: "],
    ),
]


@pytest.mark.parametrize(("overrides", "told"), SEVERAL_WRONG)
def test_what_cannot_be_composed_and_what_breaks_a_rule_is_told_at_once(
    truba: Command, overrides: list[str], told: list[str]
) -> None:
    done = truba(*overrides)
    assert done.returncode == 2 and done.stdout == ""
    for words in told:
        assert done.stderr.count(words) == 1, done.stderr


def test_a_dry_run_of_a_sweep_is_an_array_and_leaves_no_trace(truba: Command, tmp_path: Path) -> None:
    done = truba("-m", "+experiment=mnist", "train.seed=range(5)", "cluster=truba", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-4" in done.stdout and "--dependency" not in done.stdout
    ahead = truba(
        "-m", "+experiment=mnist", "train.seed=range(5)", "cluster=truba", "dry_run=true", "sweep.canary=true"
    )
    assert "#SBATCH --array=0-3" in ahead.stdout and ahead.stdout.count("#SBATCH --dependency=afterok:") == 1
    assert ahead.stdout.index("#SBATCH --array=0-0") < ahead.stdout.index("#SBATCH --kill-on-invalid-dep=yes")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["work"]


def test_a_users_own_conf_and_jobs_come_first(truba: Command) -> None:
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


BROKEN_CONFIGS = [
    ("experiment/own.yaml", b"# @package _global_\nname: own\na: [\n", "own.yaml:"),
    ("experiment/own.yaml", b"# @package _global_\nname: own\ntrain: {epohcs: 3}\n", "Did you mean epochs?"),
    ("experiment/own.yaml", b"# @package _global_\nname: \xff\xfe\n", "not UTF-8"),
    ("config.yaml", b"db: {driver: mysql}\n", "It may belong to another project"),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN_CONFIGS, ids=[row[2] for row in BROKEN_CONFIGS])
def test_a_slip_in_a_users_own_config_is_one_paragraph(truba: Command, name: str, content: bytes, words: str) -> None:
    file = truba.folder / "conf" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    done = truba("+experiment=own")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_runs_folder_that_cannot_be_one_is_named(truba: Command) -> None:
    (truba.folder / "plain").touch()
    done = truba("+experiment=mnist", "data.name=digits", "cluster.runs_folder=plain")
    assert done.returncode == 1 and "plain" in done.stderr and "Traceback" not in done.stderr


def test_slurm_that_is_not_there_is_not_said_to_have_refused(truba: Command) -> None:
    done = truba("+experiment=mnist", "data.name=digits", "cluster=truba", PATH=str(truba.folder))
    assert done.returncode == 1 and "no sbatch on the PATH" in done.stderr
    assert not list(truba.folder.parent.glob("scratch/*/truba_runner/runs/mnist*"))


@pytest.mark.parametrize("file", ["submissions.jsonl", "progress.json", "result.json"])
@pytest.mark.parametrize("content", [b"null", b"{}", b"[1]", b"\xff\xfe", b'{"metrics": 3}', b'"x"', b""])
def test_one_damaged_run_hides_no_other(truba: Command, file: str, content: bytes) -> None:
    for name in ("good-1", "bad-1"):
        folder = truba.folder / "runs" / name
        folder.mkdir(parents=True)
        (folder / "submissions.jsonl").write_text('{"event": "local", "job_id": "local-1"}\n')
    (truba.folder / "runs" / "bad-1" / file).write_bytes(content)
    done = truba("status", "--json", "--runs", "runs")
    assert done.returncode == 0, done.stderr
    assert {row["run"] for row in json.loads(done.stdout)} == {"good-1", "bad-1"}


def test_a_loss_that_is_no_number_any_more_is_still_json(truba: Command) -> None:
    from truba_runner.runs.events import Event, Kind
    from truba_runner.runs.run_directory import RunDir

    run = RunDir(truba.folder / "runs" / "nan-1")
    run.create()
    run.append_submission(Event(Kind.LOCAL, job_id="local-1"))
    run.write_result({"metrics": {"loss": float("nan"), "accuracy": 0.5}})
    done = truba("status", "--json", "--runs", "runs")
    (row,) = json.loads(done.stdout, parse_constant=pytest.fail)
    assert row["metrics"] == {"loss": None, "accuracy": 0.5}
    assert "loss nan  accuracy 0.5000" in truba("status", "--runs", "runs").stdout


def test_hydras_own_options_keep_working(truba: Command) -> None:
    shown = truba("--cfg", "job", "+experiment=mnist", "train.seed=3")
    assert shown.returncode == 0 and "seed: 3" in shown.stdout and "name: mnist" in shown.stdout
    helped = truba("--help")
    assert helped.returncode == 0 and "experiment: fraud, mnist" in helped.stdout and "dry_run=true" in helped.stdout
    assert all(f" {command} " in helped.stdout for command in commands())
    turkish = truba("-h", "train.seed=3", TRUBA_LANG="tr").stdout
    assert "hiperparametre araması" in turkish and "seed: 3" in turkish and "Powered" not in turkish
    assert all(f" {command} " in turkish for command in commands())
    assert "--to KLASÖR" in truba("keep", "--help", TRUBA_LANG="tr").stdout
    assert "experiment/mnist" in truba("--info", "defaults", "+experiment=mnist").stdout
    completed = truba.process("-sc", "query=bash", COMP_LINE="truba +experiment=mnist resources.par", COMP_POINT="99")
    assert "resources.partition=" in completed.stdout


def test_status_of_nothing(truba: Command) -> None:
    assert "no runs yet" in truba("status").stdout
    assert json.loads(truba("status", "--json").stdout) == []


def test_no_command_ends_for_a_letter_that_the_terminal_does_not_have(truba: Command) -> None:
    done = truba.process("status", TRUBA_LANG="tr", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.startswith("hen?z e?itim yok"), done.stderr


@pytest.mark.parametrize("command", [["status", "--help"], ["--help"], ["status"]])
def test_a_reader_that_has_ended_is_no_error(truba: Command, command: list[str]) -> None:
    assert truba.process(*command, to_nobody=True).stderr == ""


def test_data_that_is_missing_is_told_with_the_command_that_stages_it(truba: Command, tmp_path: Path) -> None:
    unreachable = "data.sources.mnist.url=http://127.0.0.1:9/mnist.npz"
    done = truba("+experiment=mnist", "cluster=truba", unreachable)
    command = "python -m truba_runner stage +experiment=mnist cluster=truba --from mnist.npz"
    assert done.returncode == 2 and command in done.stderr
    moved = truba("+experiment=mnist", "data.folder=my data", "cluster=truba", unreachable, "train.epochs=2")
    assert "stage +experiment=mnist 'data.folder=my data' cluster=truba --from" in moved.stderr
    assert not (tmp_path / "scratch").joinpath("truba_runner", "runs").exists()


def test_staging_checks_what_it_is_given(truba: Command, tmp_path: Path) -> None:
    (truba.folder / "mnist.npz").write_bytes(b"not it")
    refused = truba("stage", "+experiment=mnist", "--from", "mnist.npz")
    assert refused.returncode == 1 and "SHA-256" in refused.stderr
    assert not list((truba.folder / "data").iterdir())
    accepted = truba("stage", "+experiment=mnist", "data.sources.mnist.sha256=''", "--from", "mnist.npz", "--json")
    assert accepted.returncode == 0 and json.loads(accepted.stdout)[0]["state"] == "staged"
    assert (truba.folder / "data" / "mnist.npz").read_bytes() == b"not it"


def test_each_of_several_files_is_staged_by_its_own_name(truba: Command) -> None:
    asked = ["+experiment=mnist", "data.sources.mnist.sha256=''", "+job.options={arch: small, pretrained: true}"]
    asked += ["+job.weights={small: 'http://127.0.0.1:9/small-abcdef12.pth'}"]
    (truba.folder / "mnist.npz").write_bytes(b"digits")
    (truba.folder / "small.pth").write_bytes(b"weights")
    wrong = truba("stage", *asked, "--from", "small.pth")
    assert wrong.returncode == 2 and "mnist.npz and small-abcdef12.pth" in wrong.stderr
    done = truba("stage", *asked, "--from", "mnist.npz", "--json")
    assert [one["file"] for one in json.loads(done.stdout)] == ["mnist.npz"]
    both = truba("stage", *asked)
    assert both.returncode == 1 and "add --from small-abcdef12.pth" in both.stderr


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_what_is_set_for_hydra_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["truba"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    environment = dict(os.environ)
    assert main(["+experiment=mnist", "cluster=local", "dry_run=true"]) == 0
    assert dict(os.environ) == environment
