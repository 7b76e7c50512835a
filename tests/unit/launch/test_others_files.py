"""What another user of the machine has made, or may write to: not used, and no link of his is followed."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_runs import make_run, make_search, make_sweep
from searches import EXPERIMENT as SEARCH
from searches import Project

from truba_runner.cli import sweeper
from truba_runner.cli.main import main
from truba_runner.errors import Refused
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir, config_text
from truba_runner.search.directory import SearchDir
from truba_runner.slurm import client, commands
from truba_runner.storage import private
from truba_runner.sweeps import task
from truba_runner.tensorboard.feed import event_folders
from truba_runner.tensorboard.listing import MARK, understood
from truba_runner.worker import run as worker

MINE, OTHER = 40_001, 40_002
EXPERIMENT = """# @package _global_
name: par
job: {module: nothing, backend: plain, options: {rate: 0.1}}
data: {name: none}
train: {epochs: 1}
"""
CONFIG = config_text({"name": "mnist", "cluster": {"scratch": "", "acknowledgement": ""}})
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for two users")


@pytest.fixture
def project(tmp_path: Path, plain_backend: None) -> Project:
    made = Project(tmp_path / "project", SEARCH)
    (made.folder / "conf" / "experiment" / "par.yaml").write_text(EXPERIMENT)
    return made


@pytest.fixture
def named(project: Project) -> dict[str, Path]:
    """What a submission will use, by what it is; none of it is there."""
    runs = project.folder / "runs"
    assert project("+experiment=par", "dry_run=true").returncode == 0 and not runs.exists()
    return {"runs": runs, "code": runs / ".code", "sweeps": runs / ".sweeps"}


def run_of(project: Project, *overrides: str) -> RunDir:
    """The run of a command that has been given."""
    assert project("+experiment=par", *overrides).returncode == 0
    (found,) = [path for path in (project.folder / "runs").iterdir() if not path.name.startswith(".")]
    return RunDir(found)


SPOILT: dict[str, Callable[[Path], None]] = {
    "anothers": lambda path: os.chown(path, OTHER, OTHER),
    "open to a group": lambda path: (os.chown(path, -1, OTHER), path.chmod(0o770))[0],
    "open to all": lambda path: path.chmod(0o777),
}


@root_alone
@pytest.mark.parametrize("which, how", [("runs", "open to a group"), ("code", "anothers"), ("sweeps", "open to all")])
def test_a_folder_that_is_not_ones_own_alone_is_refused(
    project: Project, named: dict[str, Path], which: str, how: str
) -> None:
    path = named[which]
    path.mkdir(parents=True, mode=0o755)
    SPOILT[how](path)
    swept = ["-m", "+experiment=par", "train.seed=1,2", "dry_run=true"]
    for command in (["+experiment=par"], swept, ["+experiment=parabola", "sweep=random"]):
        done = project(*command)
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"{path}: " in done.stderr and f"mode {path.stat().st_mode & 0o7777:04o}" in done.stderr
        assert ("uid 40002" if how == "anothers" else "root") in done.stderr
    assert [one.name for one in named["runs"].iterdir()] == ([] if which == "runs" else [path.name])


@root_alone
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("below", ["", ".code", ".sweeps", ".sweeps/ID", "mnist-00000000"])
def test_each_folder_down_to_a_run_is_looked_at(tmp_path: Path, below: str, how: str) -> None:
    runs = tmp_path / "runs"
    used = [runs / name for name in (".code", ".sweeps/ID", "mnist-00000000")]
    for folder in used:
        folder.mkdir(parents=True)
    private.require(runs, used)
    SPOILT[how](runs / below)
    with pytest.raises(Refused, match=f"{runs / below}: .*mode 07"):
        private.require(runs, used)


@root_alone
def test_a_run_directory_that_was_there_first_is_refused(project: Project) -> None:
    run = run_of(project)
    (run.path / "result.json").unlink()
    os.chown(run.path, OTHER, OTHER)
    done = project("+experiment=par")
    assert done.returncode == 2 and f"{run.path}: it belongs to uid 40002 (mode 0700)" in done.stderr
    # A job that is in the queue already.
    assert worker.main([str(run.path)]) == 1 and not run.result()


@root_alone
def test_what_another_has_put_into_a_folder_that_is_closed_by_now_is_refused(project: Project) -> None:
    run = run_of(project)
    os.chown(run.path / "result.json", OTHER, OTHER)
    done = project("+experiment=par")
    assert done.returncode == 2 and f"{run.path / 'result.json'}: it belongs to uid 40002" in done.stderr


@root_alone
def test_a_directory_that_may_not_be_looked_into_is_named_with_its_owner(project: Project, tmp_path: Path) -> None:
    run = run_of(project)
    os.chown(run.path, OTHER, OTHER)
    with_rights_of(MINE, lambda: pytest.raises(PermissionError, run.exists))
    # What exists() cannot tell counts as there.
    with pytest.raises(Refused, match="uid 40002"):
        private.require(run.path.parent, [run.path])


def with_rights_of(uid: int, work: Callable[[], object]) -> None:
    """Does something in a process of another user's; what it raises ends the test."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@root_alone
def test_in_a_folder_that_all_share_each_has_ones_own(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)

    def mine() -> None:
        RunDir(shared / "mine-00000000").create()
        private.require(shared, [shared / "mine-00000000", shared / ".code"])

    def not_mine() -> None:
        with pytest.raises(Refused, match=r"shared/theirs-00000000: it belongs to uid 40002 \(mode 0700\)"):
            RunDir(shared / "theirs-00000000").create()

    with_rights_of(OTHER, lambda: RunDir(shared / "theirs-00000000").create())
    with_rights_of(MINE, mine)
    with_rights_of(MINE, not_mine)
    shared.chmod(0o777)
    with_rights_of(MINE, lambda: pytest.raises(Refused, private.require, shared, [shared / "mine-00000000"]))


@root_alone
def test_anothers_link_in_a_runs_folder_is_refused_and_ones_own_is_no_harm(tmp_path: Path) -> None:
    RunDir(tmp_path / "elsewhere").create()
    (tmp_path / "runs").mkdir(mode=0o700)
    link = tmp_path / "runs" / "par-00000000"
    link.symlink_to(tmp_path / "elsewhere")
    private.require(tmp_path / "runs", [link])
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(Refused, match="par-00000000: it belongs to uid 40002"):
        private.require(tmp_path / "runs", [link])


@root_alone
@pytest.mark.parametrize("below", [".code", ".sweeps", ".lock", "mnist-00000000"])
def test_anothers_link_to_nothing_is_refused(tmp_path: Path, below: str) -> None:
    """What it leads to he may make later."""
    link = tmp_path / below
    link.symlink_to(tmp_path / "nothing")
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(Refused, match="belongs to uid 40002"):
        private.require(tmp_path, [link])


@root_alone
def test_a_sweepers_job_looks_at_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "sweeper")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", project=str(tmp_path), command=["-m"]))
    os.chown(run.path, OTHER, OTHER)
    monkeypatch.setattr("truba_runner.cli.main.main", pytest.fail)
    assert sweeper.main([str(run.path)]) == 1


@root_alone
def test_a_job_of_an_array_looks_at_the_sweeps_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path / "runs", "swept", 200, CONFIG)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    os.chown(sweep.path, OTHER, OTHER)
    assert task.main([str(sweep.path), "0a1b2c3d"]) == 1


def test_what_the_program_makes_itself_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        sweep = make_sweep(tmp_path / "runs", "swept", 200, CONFIG)
    finally:
        os.umask(before)
    private.require(tmp_path / "runs", [sweep.path, *(sweep.run(one.run).path for one in sweep.members())])


def test_a_record_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    run.create()
    run.submissions_file.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        run.append_submission(Event(Kind.LOCAL, job_id="local-1"))
    assert not (tmp_path / "mine").exists()


# -- links and paths that lead out ------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """One's own, where nobody else can look."""
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    for name in ("id_rsa", "picture.png", "run.yaml", "progress.json", "history.csv", "x_0_log.out"):
        (folder / name).write_text('{"secret": "hunter2"}')
    return folder


@pytest.fixture
def theirs(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A colleague's runs folder, with links to what is one's own in each place that commands read."""
    monkeypatch.setattr(client, "query", lambda argv, **more: "")
    runs = tmp_path / "runs"
    run = make_run(RunDir(runs / "mnist-00000000"), "100", CONFIG)
    search = make_search(runs / "hunt-00000000", CONFIG)
    for folder in (run, search.trial("0000")):
        folder.tensorboard.mkdir()
        for place in (folder.plots / "x.png", folder.path / "model.keras", folder.tensorboard / "a.tfevents.1"):
            place.symlink_to(secret / "id_rsa")
    return runs


def replaced(place: Path, target: Path) -> None:
    """A link in a place where something is."""
    place.rename(place.with_name(f"was.{place.name}")) if place.exists() else None
    place.symlink_to(target)


def members(folder: Path) -> list[tarfile.TarInfo]:
    found = []
    for file in folder.glob("*.tar"):
        with tarfile.open(file) as archive:
            found += archive.getmembers()
    return found


def all_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "place, target",
    [("run.yaml", "run.yaml"), ("history.csv", "history.csv"), ("progress.json", "progress.json"), ("plots", "."),
     ("logs", "."), ("logs/100_0_log.out", "x_0_log.out"), ("result.json", "run.yaml"), ("", ".")],
)  # fmt: skip
def test_no_command_follows_a_link_out(
    theirs: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, target: str
) -> None:
    run = theirs / "mnist-00000000"
    at = run / place if place else run
    replaced(at, secret / target)
    if not place:
        os.lchown(at, OTHER, OTHER)
    out = tmp_path / "out"
    out.mkdir()
    for command in ("report --out", "keep --to"):
        main(f"{command} {out} --runs {theirs} mnist-00000000".split())
    for command in ("logs", "status", "why", "diff"):
        main(f"{command} --runs {theirs} mnist-00000000".split())
    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err
    assert b"hunter2" not in all_of(out) and b"aHVudGVyMg" not in all_of(out)
    assert not any(member.issym() for member in members(out))


def test_pictures_models_and_event_files_that_are_links_stay_out(theirs: Path, secret: Path, tmp_path: Path) -> None:
    for name in ("mnist-00000000", "hunt-00000000"):
        assert main(["report", name, "--runs", str(theirs), "--out", str(tmp_path / "x.html")]) == 0
        assert b"aHVudGVyMg" not in (tmp_path / "x.html").read_bytes().replace(b"\n", b"")
        main(["keep", name, "--runs", str(theirs), "--to", str(tmp_path / "kept")])
    assert b"hunter2" not in all_of(tmp_path / "kept")
    assert event_folders(RunDir(theirs / "mnist-00000000").tensorboard) == {}
    (theirs / "linked").symlink_to(secret)
    (secret / "b.tfevents.2").write_bytes(b"")
    assert event_folders(theirs / "linked") == {}


def test_an_archive_of_code_that_is_a_link_is_not_kept(theirs: Path, secret: Path, tmp_path: Path) -> None:
    (theirs / ".code").mkdir()
    (theirs / ".code" / "code-00ff.tar.gz").symlink_to(secret / "id_rsa")
    assert main(["keep", "mnist", "--runs", str(theirs), "--to", str(tmp_path / "kept")]) == 0
    kept = members(tmp_path / "kept")
    assert kept and not any("code-00ff" in member.name for member in kept)


def finished(path: Path) -> RunDir:
    """A run with a checkpoint that it does not need any more."""
    run = make_run(RunDir(path), "100", CONFIG)
    store = CheckpointStore(run.checkpoints, keep=9)
    for epoch in (1, 2):
        store.save(Position(epoch, 0), lambda file: file.write(b"x"))
    return run


@pytest.mark.parametrize("member", ["../mine-00000000", "../../mine/mine-00000000", "/{mine}", ".", ""])
def test_clean_leaves_alone_what_a_sweeps_record_names_elsewhere(tmp_path: Path, member: str) -> None:
    mine = finished(tmp_path / "mine" / "mine-00000000")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    sweep = make_sweep(tmp_path / "runs", "swept", 200, CONFIG)
    about = json.loads((sweep.path / "sweep.json").read_text())
    about["runs"][0]["run"] = member.format(mine=mine.path)
    (sweep.path / "sweep.json").write_text(json.dumps(about))
    assert main(["clean", sweep.id, "--yes", "--runs", str(tmp_path / "runs")]) == 1
    assert main(["clean", "--yes", "--runs", str(tmp_path / "runs")]) == 0
    assert len(list(mine.checkpoints.iterdir())) == 2


def test_clean_does_not_go_through_a_link(tmp_path: Path) -> None:
    mine = finished(tmp_path / "mine" / "mine-00000000")
    theirs = finished(tmp_path / "runs" / "mnist-00000000")
    replaced(theirs.checkpoints, mine.checkpoints)
    (theirs.path / "was.checkpoints" / "more").mkdir()
    (theirs.path / "was.checkpoints" / "more" / "checkpoints").symlink_to(mine.checkpoints)
    assert main(["clean", "--yes", "--runs", str(tmp_path / "runs")]) == 0
    assert len(list(mine.checkpoints.iterdir())) == 2


@root_alone
def test_clean_and_cancel_leave_anothers_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    rows = "\x1f".join(["100", "RUNNING", "akya-cuda", "None", "1:00", "1:00:00", "akya1"])
    monkeypatch.setattr(client, "query", lambda argv, **more: rows if argv[0] == "squeue" else "")
    monkeypatch.setattr(commands, "cancel", cancelled.extend)
    theirs = finished(tmp_path / "runs" / "mnist-00000000")
    os.chown(theirs.path, OTHER, OTHER)
    assert main(["clean", "--yes", "--runs", str(tmp_path / "runs")]) == 0
    assert len(list(theirs.checkpoints.iterdir())) == 2
    (theirs.path / "result.json").unlink()
    # It says that a job of this user's is that run's.
    assert main(["cancel", "mnist", "-y", "--runs", str(tmp_path / "runs")]) == 2
    assert not cancelled and "uid 40002" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["workers", "trials"])
def test_a_search_has_no_part_elsewhere(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = make_search(tmp_path / "mine" / "hunt-00000000", CONFIG)
    theirs = make_search(tmp_path / "runs" / "hunt-00000000", CONFIG)
    replaced(theirs.path / folder, mine.path / folder)
    monkeypatch.setattr(client, "query", lambda argv, **more: "")
    assert SearchDir(theirs.path).workers() == [] if folder == "workers" else True
    assert main(["status", "--runs", str(tmp_path / "runs")]) == 0


def test_what_a_login_node_tells_names_nothing_outside_the_folder(tmp_path: Path) -> None:
    names = ["mnist-00000000", "../mine", "/etc", "..", ".ssh", "a/b", "", 7]
    told = [{"runs_folder": "/x", "runs": names, "searches": names, "sweeps": names, "code": names, "live": []}]
    (found,) = understood(MARK + json.dumps(told)) or []
    assert found.runs == found.searches == found.sweeps == found.code == ["mnist-00000000"]
