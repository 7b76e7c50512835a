"""The code that runs is the code that was submitted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from in_process import truba

from truba_runner.cli.main import main
from truba_runner.code import snapshot
from truba_runner.code import unpacked as submitted_code
from truba_runner.code.snapshot import File
from truba_runner.code.unpacked import SubmittedCode
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.rules.experiment import plan
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm import commands
from truba_runner.submission import submission
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission
from truba_runner.sweeps.array import ArraySubmission
from truba_runner.training import full_disk
from truba_runner.worker.failure import describe

ROOT = Path(__file__).resolve().parents[3]
JOB = """
import sys
from pathlib import Path

import helper
from alias import more as same
from tools import more

here = Path(__file__).parent.parent
print("trained with", helper.VALUE, more.VALUE, same.VALUE, (here / "data" / "table.csv").read_text(), flush=True)
print("on the path", [one for one in sys.path if "truba-" in one or "project" in one], flush=True)
helper.fail()
"""
HELPER = 'VALUE = "then"\n\n\ndef fail():\n    raise ValueError(f"as in {__file__}")  # submitted\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job of its own, where commands are given."""
    folder = tmp_path / "scratch" / "project"
    write(folder / "jobs" / "own.py", JOB)
    write(folder / "helper.py", HELPER)
    write(folder / "tools" / "more.py", 'VALUE = "then too"\n')
    write(folder / "data" / "table.csv", "1,2")
    (folder / "alias").symlink_to("tools")
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(project: Path, *without: str) -> list[str]:
    return list(snapshot.files(project, project / "jobs" / "own.py", [project / name for name in without]))


def git(project: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(project), *arguments], check=True, capture_output=True)


def test_of_a_git_repository_what_it_tracks_and_does_not_ignore(project: Path, tmp_path: Path) -> None:
    write(project / ".gitignore", "data/\n*.log\n")
    for name in ("tracked.txt", "gone.py", "new/untracked.md", "some.log", "runs/run.yaml"):
        write(project / name)
    git(project, "init", "-q")
    git(project, "add", "tracked.txt", "gone.py")
    (project / "gone.py").unlink()
    write(project / "inner" / "module.py")
    git(project / "inner", "init", "-q")
    write(tmp_path / "outside.py")
    (project / "here.py").symlink_to("helper.py")
    (project / "there.py").symlink_to(tmp_path / "outside.py")
    expected = [".gitignore", "helper.py", "here.py", "inner/module.py", "jobs/own.py", "new/untracked.md"]
    assert names(project, "runs", "data") == [*expected, "tools/more.py", "tracked.txt"]
    assert snapshot.read({"here.py": project / "here.py"})["here.py"].content == HELPER.encode()
    git(project, "rm", "-q", "--cached", "tracked.txt")
    write(project / ".gitignore", "*\n")
    modules = ["helper.py", "here.py", "inner/module.py", "jobs/own.py", "tools/more.py"]
    assert names(project, "runs", "data") == modules, "git is told to ignore the job: it has no say"


def test_without_git_jobs_and_conf_and_the_modules_beside_them(project: Path) -> None:
    for name in ("conf/experiment/my.yaml", "jobs/labels.csv", "jobs/__pycache__/own.pyc", "tools/big.bin"):
        write(project / name)
    for name in ("notes.txt", ".venv/lib.py", "runs/old.py"):
        write(project / name)
    expected = ["conf/experiment/my.yaml", "helper.py", "jobs/labels.csv", "jobs/own.py", "tools/more.py"]
    assert names(project, "runs", "data") == expected
    deep = write(project / "src" / "deep" / "train.py")
    assert "src/deep/train.py" in snapshot.files(project, deep, []), "wherever the job lies"


def test_the_same_files_share_an_archive(project: Path, experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    own = experiment("job.module=own", f"cluster.runs_folder={tmp_path / 'scratch' / 'runs'}", "data.folder=data")

    def taken() -> snapshot.Taken:
        snapshot._taken.cache_clear()
        found = snapshot.take(own, project / "jobs" / "own.py")
        assert found is not None
        return found

    first = taken()
    assert (
        first.archive.parent == tmp_path / "scratch" / "runs" / ".code"
        and first.archive.stat().st_mode & 0o777 == 0o600
    )
    assert first.files == 3 and snapshot.unpacked(code_of(first))["helper.py"] == File(HELPER.encode(), False)
    os.utime(first.archive, (0, 0))
    inode = first.archive.stat().st_ino
    os.utime(project / "helper.py", (5, 5))
    assert taken() == first and first.archive.stat().st_ino == inode
    assert first.archive.stat().st_mtime > 0, "a purge takes what nobody has written to for long"
    (project / "helper.py").chmod(0o755)
    assert taken().sha256 != first.sha256
    (project / os.fsdecode(b"jobs/g\xfcl.txt")).write_bytes(b"\0\xff")
    write(project / "jobs" / "long.txt", " ".join(map(str, range(20_000))))
    third = taken()
    found = snapshot.unpacked(code_of(third))
    assert found[os.fsdecode(b"jobs/g\xfcl.txt")] == File(b"\0\xff", False) and found["helper.py"].executable
    assert third.job_sha256 == first.job_sha256
    whole = third.archive.read_bytes()
    third.archive.write_bytes(whole[:100])
    with pytest.raises(Failed, match="is damaged"):
        snapshot.unpacked(code_of(third))
    for at in (*range(10, 600, 3), *range(600, len(whole), 99)):
        third.archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(Failed):
            assert snapshot.unpacked(code_of(third)) == found, "what is damaged is not trained"


def code_of(taken: snapshot.Taken) -> dict[str, Any]:
    return dict(taken.record()["code"])


def test_none_is_taken_of_what_trains_here_or_is_not_the_projects(
    project: Path, experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    own, folder = project / "jobs" / "own.py", f"cluster.runs_folder={tmp_path / 'scratch' / 'runs'}"
    assert snapshot.take(experiment(folder), own)
    assert snapshot.take(experiment(folder, "code.snapshot=false"), own) is None
    assert snapshot.take(experiment(folder, cluster="local"), own) is None
    assert snapshot.take(experiment(folder), ROOT / "jobs" / "mnist.py") is None


@pytest.mark.parametrize("command", ["one", "sweep"])
def test_too_much_code_is_refused_before_anything_is_written(project: Path, tmp_path: Path, command: str) -> None:
    write(project / "jobs" / "weights.bin", "x" * 300_000)
    asked = ["cluster=truba", "+experiment=mnist", "job.module=own", "data.name=digits", "resources.account=a"]
    argv = [*(["-m", "train.seed=1,2"] if command == "sweep" else []), *asked, "code.max_mb=0.2"]
    done = truba(*argv, f"cluster.runs_folder={project / 'runs'}", cwd=project, environment=os.environ)
    assert done.returncode == 2, done.stderr
    assert "jobs/weights.bin (0.3 MB)" in done.stderr and "code.max_mb=0.2" in done.stderr
    assert ".gitignore" in done.stderr and "code.snapshot=false" in done.stderr and done.stderr.count("MB)") <= 4
    assert not (project / "runs").exists()


@pytest.fixture
def submitted(
    project: Path, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], RunDir]:
    """Submits the project's job to a Slurm that takes it and does nothing."""

    def submit_it() -> RunDir:
        own = experiment("job.module=own", f"cluster.runs_folder={project / 'runs'}", f"data.folder={project / 'data'}")
        monkeypatch.setattr(commands, "sbatch", lambda script, inherit: "7")
        monkeypatch.setattr(submission.budget, "warnings", lambda *given: [])
        run = RunDir(project / "runs" / "mnist-00000000")
        run.path.parent.mkdir()
        Submission(Prepared(own, run, plan(own).request, project / "jobs" / "own.py")).send(0)
        return run

    return submit_it


def edit(project: Path) -> None:
    write(project / "jobs" / "own.py", "raise RuntimeError('this is not what was submitted')\n")
    write(project / "helper.py", HELPER.replace("then", "now").replace("raise", "assert False and"))
    (project / "tools" / "more.py").unlink()
    write(project / "jobs" / "new.py")


def test_a_job_trains_what_was_submitted(submitted: Callable[[], RunDir], project: Path, tmp_path: Path) -> None:
    run = submitted()
    edit(project)
    archive = Path(run.submitted().code["archive"])
    os.utime(archive, (0, 0))
    (tmp_path / "tmp").mkdir()
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "TRUBA_JOB_ID": "7", "TRUBA_JOB_NAME": "7"}
    done = subprocess.run(
        [sys.executable, "-m", "truba_runner.worker", str(run.path)],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "trained with then then too then too 1,2" in done.stdout, done.stderr
    assert "has changed since" not in done.stderr
    assert f'File "{project}/helper.py", line 5, in fail\n    raise ValueError' in done.stderr
    error = run.progress().error
    assert error
    assert error.message == f"as in {project}/helper.py"
    assert (error.file, error.line, error.code) == (str(project / "jobs" / "own.py"), 12, "helper.fail()")
    (start,) = [event for event in run.submissions() if event.kind == Kind.STARTED]
    assert start.job_sha256 == run.submitted().job_sha256
    assert not list((tmp_path / "tmp").iterdir()), "it is gone from the node"
    assert archive.stat().st_mtime > 0, "the next start of a run that takes weeks finds it too"
    told = done.stdout.partition("on the path ")[2]
    assert all("/truba-" in one for one in json.loads(told.splitlines()[0].replace("'", '"'))[:2])
    assert (project / "data" / "table.csv").read_text() == "1,2"


def test_a_job_whose_code_was_taken_away_says_so(submitted: Callable[[], RunDir], tmp_path: Path) -> None:
    run = submitted()
    Path(run.submitted().code["archive"]).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "truba_runner.worker", str(run.path)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "is not there any more" in done.stderr and "Submit the run again" in done.stderr


def test_diff_shows_what_was_edited_since(
    submitted: Callable[[], RunDir], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project / "jobs" / "picture.bin", "\0")
    run = submitted()
    argv = ["diff", run.id, "--runs", str(project / "runs")]
    assert main(argv) == 0 and "nothing has changed" in capsys.readouterr().out
    edit(project)
    (project / "jobs" / "picture.bin").write_bytes(b"\xff")
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert '--- submitted/helper.py\n+++ now/helper.py\n@@ -1,5 +1,5 @@\n-VALUE = "then"\n+VALUE = "now"\n' in told
    assert "jobs/new.py is new" in told and "tools/more.py is gone" in told
    assert "jobs/picture.bin has changed, but in no line of text" in told
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["added"], found["removed"]) == (["jobs/new.py"], ["tools/more.py"])
    assert sorted(found["changed"]) == ["helper.py", "jobs/own.py", "jobs/picture.bin"]
    assert found["code"]["files"] == 4 and not found["changed"]["jobs/picture.bin"]


def test_diff_of_a_run_without_a_copy_of_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-0")
    run.create()
    run.write_config({})
    run.append_submission(Event(Kind.LOCAL, job_id="local-1", job_file="/project/jobs/own.py"))
    assert main(["diff", run.id, "--runs", str(run.path.parent)]) == 0
    assert "mnist-0 has no copy of its code" in capsys.readouterr().err


def test_the_runs_of_an_array_share_it(project: Path, experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    own = experiment("job.module=own", f"cluster.runs_folder={tmp_path / 'scratch' / 'runs'}")
    request = plan(own).request
    runs = [
        Prepared(own, RunDir(tmp_path / "scratch" / "runs" / f"mnist-{one}"), request, project / "jobs" / "own.py")
        for one in "12"
    ]
    sweep = SweepDir.of(tmp_path / "scratch" / "runs", "mnist-sweep-00000000")
    sweep.logs.mkdir(parents=True)
    array = ArraySubmission(
        runs[0], sweep=sweep, tasks=[[one] for one in runs], allocation=request, places=1, max_parallel=1
    )
    array.record_intent()
    records = [one.run.submitted() for one in runs]
    (archive,) = (tmp_path / "scratch" / "runs" / ".code").iterdir()
    assert [record.code["archive"] for record in records] == [str(archive)] * 2
    assert [record.project for record in records] == [str(project)] * 2


def test_an_error_is_told_of_the_users_own_file(tmp_path: Path) -> None:
    unpacked = write(tmp_path / "unpacked" / "jobs" / "own.py", "1 / 0\n")
    try:
        exec(compile(unpacked.read_text(), str(unpacked), "exec"))  # noqa: S102
    except ZeroDivisionError as error:
        told = describe(error, Path("/project/jobs"), lambda text: text.replace(str(tmp_path / "unpacked"), "/project"))
    assert (told.file, told.code) == ("/project/jobs/own.py", "1 / 0")


def test_a_node_whose_own_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch := tmp_path / "node").mkdir()
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    full, unpack, files = [scratch], submitted_code._write, {"jobs/own.py": File(b"", False)}

    def write_where_there_is_room(files: Mapping[str, File], folder: Path) -> None:
        unpack(files, folder)
        if any(folder.is_relative_to(one) for one in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(submitted_code, "_write", write_where_there_is_room)
    for node in (scratch, Path("/nowhere")):
        with SubmittedCode() as code:
            folder = code._written(files, node, "project").parent
            assert folder.parent == temporary and folder.stat().st_mode & 0o777 == 0o700
            assert not list(scratch.iterdir()), "half of the code is in nobody's way"
        assert not folder.exists()
    full.append(temporary)
    with (
        SubmittedCode() as code,
        pytest.raises(Failed, match="code-.*: No space left on device.* the node's local disk") as failed,
    ):
        code._written(files, scratch, "project")
    assert not [*scratch.iterdir(), *temporary.iterdir()]
    run = RunDir(tmp_path / "run")
    assert full_disk.explained(failed.value, run) is failed.value, "it is not the run's disk that is full"


SECRETS = (
    ".env", ".env.local", ".envrc", "conf/prod.env", "secrets.yaml", "conf/db_credentials.json", "api-keys.txt",
    ".netrc", "deploy.pem", "conf/server.key", "id_ed25519", ".aws/config", "SECRETS.YML", "kaggle.json",
    "jobs/auth_token.txt",
)  # fmt: skip
NO_SECRETS = (
    "secrets.py", "jobs/tokenizer.json", "environment.yaml", "keys.py", "id_rsa.pub", "conf/monkey.yaml", "README.md",
)  # fmt: skip


def test_what_looks_like_a_secret_is_left_out_and_said_once(
    project: Path, experiment: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    git(project, "init")
    for name in (*SECRETS, *NO_SECRETS):
        write(project / name)
    write(project / "deployment", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    found = set(names(project))
    assert found.isdisjoint({*SECRETS, "deployment"}) and found >= set(NO_SECRETS)
    for _again in range(2):
        made = experiment("job.module=own", "data.name=none")
        taken = snapshot.take(made, project / "jobs" / "own.py")
        assert taken and not set(snapshot.unpacked(taken.record()["code"])) & set(SECRETS)
    told = capsys.readouterr().err
    assert told.count("look like secrets") == 1 and "and 4 more" in told and "code.include=[" in told


def test_a_secret_goes_along_on_purpose(
    project: Path, experiment: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    git(project, "init")
    for name in (".env", "secrets.yaml", "conf/server.key"):
        write(project / name)
    made = experiment("job.module=own", "data.name=none", "code.include=[.env,'*.key']")
    taken = snapshot.take(made, project / "jobs" / "own.py")
    assert taken and {".env", "conf/server.key"} <= set(snapshot.unpacked(taken.record()["code"]))
    assert "secrets: secrets.yaml." in capsys.readouterr().err
