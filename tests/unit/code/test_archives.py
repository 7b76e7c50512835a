"""Archives of code in a runs folder: what a run needs of them, and when one goes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.code import archives
from truba_runner.code import package as job_code
from truba_runner.config.schema import Environment
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import CODE, RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search.directory import SearchDir
from truba_runner.storage import folder_lock

DAY_SECONDS = 86_400.0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    (folder / CODE).mkdir(parents=True)
    return folder


def archive(runs: Path, name: str, days_old: float = 5) -> Path:
    path = runs / CODE / name
    path.write_bytes(b"an archive")
    then = time.time() - days_old * DAY_SECONDS
    os.utime(path, (then, then))
    return path


def intent(runs: Path, *names: str) -> Event:
    code = [name for name in names if name.startswith("code-")]
    own = {"code": {"archive": str(runs / CODE / code[0])}} if code else {}
    return Event(Kind.INTENT, token="t", sbatch={"setup": [f"touch {one}" for one in names if one not in code]}, **own)


def submitted(run: RunDir, *names: str, over_days_ago: float | None = None) -> RunDir:
    run.create()
    run.write_config({"name": "mnist", "cluster": {"scratch": str(run.path.parent), "scratch_days": 30}})
    run.append_submission(intent(run.path.parent, *names))
    if over_days_ago is not None:
        run.write_result({"metrics": {}})
        then = time.time() - over_days_ago * DAY_SECONDS
        os.utime(run.path / "result.json", (then, then))
    return run


def left(runs: Path) -> set[str]:
    assert main(["clean", "--yes", "--runs", str(runs)]) == 0
    return {path.name for path in (runs / CODE).iterdir()}


def test_an_archive_stays_for_as_long_as_a_run_that_names_it_is_there(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"code-{digit * 16}.tar.gz" for digit in "abcd"}
    for name in names:
        archive(runs, name)
    alone = submitted(RunDir(runs / "mnist-0000000a"), f"code-{'a' * 16}.tar.gz", over_days_ago=9)
    of_sweep = RunDir(runs / "mnist-0000000b")
    of_sweep.create()
    sweep = SweepDir.of(runs, "mnist-sweep-1")
    sweep.describe([Member(of_sweep.id, {"train.seed": 1})])
    of_sweep.append_submission(Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=0))
    sweep.append(replace(intent(runs, f"code-{'b' * 16}.tar.gz"), tasks=[[of_sweep.id]]))
    search = SearchDir(runs / "mnist-0000000c")
    search.create()
    submitted(search, over_days_ago=None)
    search.create_worker(0).append_submission(intent(runs, f"code-{'c' * 16}.tar.gz"))
    assert main(["clean", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "code that no run uses: 1 file" in out and "nothing was deleted" in out
    assert left(runs) == names - {f"code-{'d' * 16}.tar.gz"}
    # Deleted by its owner, the last run of a sweep takes the sweep's code along.
    for run in (alone, of_sweep):
        for path in sorted(run.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.path.rmdir()
    assert left(runs) == {f"code-{'c' * 16}.tar.gz"}


def test_what_jobs_import_the_package_from_goes_once_their_runs_are_over(runs: Path) -> None:
    old, of_open, of_ended, wrapper = (
        "truba-00000000000a.pyz",
        "truba-00000000000b.pyz",
        "truba-00000000000c.pyz",
        "apptainer-0d",
    )
    for name in (old, of_open, of_ended, wrapper, ".code-1.tar.gz.cut"):
        archive(runs, name)
    archive(runs, "truba-00000000000e.pyz", days_old=0.5)
    submitted(RunDir(runs / "mnist-1"), old, over_days_ago=9)
    submitted(RunDir(runs / "mnist-2"), of_open, wrapper)
    # Its job may still import something.
    submitted(RunDir(runs / "mnist-3"), of_ended, over_days_ago=0.01)
    assert left(runs) == {of_open, of_ended, wrapper, "truba-00000000000e.pyz"}


def test_a_record_that_a_full_disk_cut_short_still_counts(runs: Path) -> None:
    name = archive(runs, f"code-{'a' * 16}.tar.gz").name
    run = submitted(RunDir(runs / "mnist-1"))
    with run.submissions_file.open("a") as file:
        file.write(f'{{"event": "intent", "code": {{"archive": "{runs / CODE / name}"')
    assert left(runs) == {name}


SUBMITS = """
import sys, time
from pathlib import Path
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import folder_lock
runs = Path(sys.argv[1])
with folder_lock.lock(runs):
    print("held", flush=True)
    sys.stdin.readline()
    run = RunDir(runs / "mnist-1")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", code={"archive": sys.argv[2]}))
"""


def test_a_submission_under_way_keeps_its_archive(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where clocks differ, or an archive was found there already: it looks old, and no record names it yet.
    path = archive(runs, f"code-{'a' * 16}.tar.gz")
    argv = [sys.executable, "-c", SUBMITS, str(runs), str(path)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdin and child.stdout.readline() == "held\n"
    waits = folder_lock.lock

    def tells_that_it_waits(folder: Path):  # type: ignore[no-untyped-def]
        with (folder / ".lock").open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.stdin.write("go on\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        return waits(folder)

    monkeypatch.setattr(folder_lock, "lock", tells_that_it_waits)
    assert archives.unneeded(runs) == [path]
    archives.free(runs, [path])
    child.communicate()
    assert child.returncode == 0 and path.exists()


def test_to_a_purge_the_package_is_as_new_as_its_newest_submission(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_code, "_content", lambda: b"the package")
    environment = Environment(name="venv", kind="venv", venv="/venv")
    job_code.provide(environment, runs)
    (path,) = (runs / CODE).iterdir()
    then = time.time() - 29 * DAY_SECONDS
    os.utime(path, (then, then))
    job_code.provide(environment, runs)
    assert time.time() - path.stat().st_mtime < 60 and path.read_bytes() == b"the package"


def test_a_purge_that_takes_what_an_open_run_needs_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, package = f"code-{'a' * 16}.tar.gz", "truba-00000000000a.pyz"
    for name in (code, package):
        archive(runs, name, days_old=28)
    submitted(RunDir(runs / "mnist-1"), code, package)
    submitted(RunDir(runs / "mnist-2"), code, package, over_days_ago=0)
    assert main(["expiring", "--days", "5", "--runs", str(runs), "--json"]) == 0
    told = {one["run"]: one for one in json.loads(capsys.readouterr().out)}
    assert (told["mnist-1"]["files"], told["mnist-1"]["finished"]) == (2, False)
    # A finished run is in no need of the package.
    assert (told["mnist-2"]["files"], told["mnist-2"]["finished"]) == (1, True)
    assert main(["expiring", "--days", "5", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "truba keep mnist-2\n" in out and "these files are needed to resume: mnist-1." in out


def test_a_kept_run_holds_the_code_that_it_trained_and_diff_finds_it(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "jobs").mkdir(parents=True)
    (project / "jobs" / "own.py").write_text("then = 1\n")
    from truba_runner.code import snapshot

    found = snapshot.read(snapshot.files(project, project / "jobs" / "own.py", []))
    path = archive(runs, f"code-{'a' * 16}.tar.gz")
    path.write_bytes(snapshot._packed(found))
    run = submitted(RunDir(runs / "mnist-1"), over_days_ago=9)
    run.write_config({"cluster": {"runs_folder": str(runs)}, "data": {"folder": str(tmp_path / "data")}})
    code = {"archive": str(path), "sha256": snapshot._digest(found)}
    run.append_submission(
        replace(intent(runs), code=code, job_file=str(project / "jobs" / "own.py"), project=str(project))
    )
    home = tmp_path / "home"
    assert main(["keep", "mnist-1", "--runs", str(runs), "--to", str(home)]) == 0
    path.unlink()
    subprocess.run(["tar", "xf", "mnist-1.tar"], cwd=home, check=True)
    checked = subprocess.run(
        ["sha256sum", "-c", "mnist-1/SHA256SUMS"], cwd=home, check=True, capture_output=True, text=True
    )
    assert f".code/{path.name}: OK" in checked.stdout
    (project / "jobs" / "own.py").write_text("now = 2\n")
    capsys.readouterr()
    assert main(["diff", "mnist-1", "--runs", str(home)]) == 0
    assert "-then = 1\n+now = 2" in capsys.readouterr().out
