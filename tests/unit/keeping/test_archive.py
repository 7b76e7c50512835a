"""What is worth keeping of a run, what may be deleted, and what the site will delete."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.errors import Failed
from truba_runner.keeping import archive
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_files import PULLED
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir

DAY_SECONDS = 86_400


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run on a scratch of 30 days: three epochs, of which the first was the best."""
    made = RunDir(tmp_path / "runs" / "mnist-00000000")
    made.create()
    made.write_config({"cluster": {"scratch": str(tmp_path), "scratch_days": 30}})
    made.append_submission(Event(Kind.LOCAL, job_id="local-1", pid=1, host="elsewhere"))
    store = CheckpointStore(made.checkpoints)
    for epoch in (1, 2, 3):
        content = f"epoch {epoch}".encode()
        store.save(Position(epoch, 0), lambda file, content=content: file.write(content), best=epoch == 1)
    (made.checkpoints / ".checkpoint-000004-000000000.ckpt.x").write_bytes(b"cut short by a kill")
    (made.path / "model.keras").write_bytes(b"model")
    made.write_result({"metrics": {"val_loss": 0.5}})
    return made


def names(run: RunDir) -> set[str]:
    return {path.name for path in run.checkpoints.iterdir()}


def test_an_archive_holds_what_sha256sum_finds_right_and_no_checkpoint_to_go_on_from(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    assert main(["keep", "mnist", "--runs", str(run.path.parent), "--to", str(home), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["sha256"] == archive.sha256(Path(told["file"])) and os.listdir(home) == ["mnist-00000000.tar"]
    subprocess.run(["tar", "xf", told["file"]], cwd=home, check=True)
    checked = subprocess.run(
        ["sha256sum", "-c", f"{run.id}/{archive.SUMS}"], cwd=home, check=True, capture_output=True, text=True
    )
    assert checked.stdout.count(": OK") == told["files"]
    kept = RunDir(home / run.id)
    assert kept.path.stat().st_mode & 0o777 == kept.checkpoints.stat().st_mode & 0o777 == 0o700
    assert names(kept) == {"best.ckpt"} and kept.result() == run.result()
    assert CheckpointStore(kept.checkpoints).best(lambda file: file.read(7)) == b"epoch 1"


def test_of_a_run_that_is_not_finished_what_it_goes_on_from_is_kept(run: RunDir) -> None:
    (run.path / "result.json").unlink()
    kept = {path.name for path in archive.kept_files(run.path) if path.parent == run.checkpoints}
    assert kept == {"best.ckpt", "checkpoint-000002-000000000.ckpt", "checkpoint-000003-000000000.ckpt"}


def test_an_archive_that_has_more_than_is_left_of_the_run_stays(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keep", run.id, "--runs", str(run.path.parent), "--to", str(tmp_path / "home")]
    assert main(command) == 0 and main(command) == 0
    file = tmp_path / "home" / f"{run.id}.tar"
    before = file.read_bytes()
    # As a purge does it.
    (run.path / "model.keras").unlink()
    assert main(command) == 2
    assert f"that the run no longer has: {run.id}/model.keras." in capsys.readouterr().err
    assert file.read_bytes() == before and os.listdir(tmp_path / "home") == [file.name]
    # One that is no archive any more holds nothing.
    file.write_bytes(before[:600])
    assert main(command) == 0


def test_what_a_kill_left_of_an_archive_goes_at_the_next_and_one_that_is_being_written_does_not(
    run: RunDir, tmp_path: Path
) -> None:
    target = tmp_path / f"{run.id}.tar"
    left, written = (tmp_path / f".{target.name}.{end}" for end in ("left", "now"))
    left.write_bytes(b"half")
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        archive.write(target, run.path.parent, archive.kept_files(run.path))
    assert written.exists() and not left.exists() and target.exists()


def test_a_full_disk_is_said_and_leaves_nothing(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.os, "fsync", full)
    assert main(["keep", run.id, "--runs", str(run.path.parent), "--to", str(tmp_path / "home")]) == 1
    assert (
        "could not be written (No space left on device), and the incomplete file was deleted."
        in capsys.readouterr().err
    )
    assert not os.listdir(tmp_path / "home")


def test_without_a_best_checkpoint_the_newest_is_kept(run: RunDir) -> None:
    (run.checkpoints / "best.ckpt").unlink()
    kept = [path.name for path in archive.kept_files(run.path) if path.suffix == ".ckpt"]
    assert kept == ["checkpoint-000003-000000000.ckpt"]


def test_a_file_that_changes_meanwhile_spoils_the_archive_and_leaves_an_older_one(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept.tar"
    target.write_bytes(b"older")

    def grows(path: Path, of: object = archive.sha256) -> str:
        digest = str(of(path))  # type: ignore[operator]
        if path.name == "model.keras":
            path.write_bytes(b"another model")
        return digest

    monkeypatch.setattr(archive, "sha256", grows)
    with pytest.raises(Failed, match=r"model\.keras: changed while"):
        archive.write(target, run.path.parent, archive.kept_files(run.path))
    assert target.read_bytes() == b"older" and not list(tmp_path.glob(".kept*"))


def test_what_is_not_over_is_not_kept(run: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run.path / "result.json").unlink()
    # Stands in for the run's own process, which has the run's name on its command line.
    child = subprocess.Popen(["bash", "-c", "read", run.id], stdin=subprocess.PIPE)
    run.append_submission(Event(Kind.LOCAL, job_id="local-2", pid=child.pid, host=os.uname().nodename))
    try:
        assert main(["keep", run.id, "--runs", str(run.path.parent), "--to", str(tmp_path / "home")]) == 2
    finally:
        child.communicate(b"\n")
    assert "it has not ended (RUNNING)" in capsys.readouterr().err and not (tmp_path / "home").exists()


def test_clean_asks_first_and_leaves_the_best(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--runs", str(run.path.parent)]
    before = names(run)
    assert main(["clean", *place]) == 0
    out = capsys.readouterr().out
    assert "3 files" in out and "nothing was deleted" in out and names(run) == before
    assert main(["clean", *place, "--yes"]) == 0
    assert names(run) == {"best.ckpt"} and run.result() and (run.path / "model.keras").exists()
    capsys.readouterr()
    assert main(["clean", *place, "--yes"]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_clean_leaves_alone_what_is_not_finished(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "result.json").unlink()
    before = names(run)
    assert main(["clean", "--yes", "--runs", str(run.path.parent)]) == 0
    assert main(["clean", run.id, "--yes", "--runs", str(run.path.parent)]) == 2
    assert "needs its checkpoints to resume" in capsys.readouterr().err and names(run) == before


def test_what_the_site_will_purge_is_told_with_what_keeps_it(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--runs", str(run.path.parent)]
    assert main(["expiring", *place]) == 0
    assert "no run has a file that is purged within 7 days" in capsys.readouterr().out
    old = time.time() - 25 * DAY_SECONDS
    os.utime(run.path / "model.keras", (old, old))
    assert main(["expiring", *place]) == 0
    out = capsys.readouterr().out
    assert f"{run.id}: 1 file, " in out and "the first in 5 days" in out and f"truba keep {run.id}" in out
    assert main(["expiring", "--days", "4", *place]) == 0
    assert "no run has" in capsys.readouterr().out


def test_runs_of_a_sweep_are_one_line_and_one_archive(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepDir.of(run.path.parent, "mnist-sweep-1")
    sweep.describe([Member(run.id, {"train.seed": 1})])
    run.append_submission(Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=0))
    other = RunDir(run.path.parent / "mnist-00000001")
    other.create()
    other.append_submission(Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=1))
    old = time.time() - 25 * DAY_SECONDS
    for path in (run.path / "model.keras", other.submissions_file):
        os.utime(path, (old, old))
    place = ["--runs", str(run.path.parent)]
    assert main(["expiring", *place]) == 0
    out = capsys.readouterr().out
    # Of the second a purge has taken the config already.
    assert f"{sweep.id}: 2 files" in out and run.id not in out and f"to resume: {sweep.id}." in out
    assert main(["expiring", "--json", *place]) == 0
    assert {one["run"] for one in json.loads(capsys.readouterr().out)} == {run.id, other.id}
    other.write_result({"metrics": {}})
    assert main(["expiring", *place]) == 0
    assert f"truba keep {sweep.id}\n" in capsys.readouterr().out
    assert main(["expiring", "--days", "-1", *place]) == 2


def test_where_nothing_is_purged_nothing_is_told(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_config({"cluster": {"scratch": "", "scratch_days": 0}})
    old = time.time() - 99 * DAY_SECONDS
    os.utime(run.path / "model.keras", (old, old))
    assert main(["expiring", "--runs", str(run.path.parent)]) == 0
    assert "no run has" in capsys.readouterr().out


def pulled(folder: Path, name: str, days_ago: float) -> RunDir:
    """As `truba pull` leaves a run that still trained."""
    made = RunDir(folder / name)
    made.create()
    made.write_config({"name": "mnist"})
    made.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    (made.tensorboard / "train").mkdir(parents=True)
    (made.tensorboard / "train" / "events").write_bytes(b"events")
    (made.path / PULLED).write_text(json.dumps({"from": "arf", "time": time.time() - days_ago * DAY_SECONDS}))
    return made


def test_old_pulls_go_when_they_are_asked_for(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pulled"
    old, new = pulled(folder, "mnist-old", 45), pulled(folder, "mnist-new", 3)
    sweeps = [SweepDir.of(folder, f"mnist-sweep-{number}") for number in (1, 2)]
    for sweep, members in zip(sweeps, ([old.id], [old.id, new.id]), strict=True):
        sweep.describe([Member(one, {}) for one in members])
    place = ["--runs", str(folder)]
    assert main(["clean", "--yes", *place]) == 0
    told = capsys.readouterr().out
    assert "1 copy was last pulled more than 30 days ago: truba clean --pulls 30" in told and old.path.exists()
    assert main(["clean", "--pulls", "30", *place]) == 0
    told = capsys.readouterr().out
    assert "mnist-old: the whole copy in" in told and "last pulled from arf on" in told and "mnist-new" not in told
    assert "then these copies are all that is left" in told and old.path.exists()
    assert main(["clean", "--pulls", "30", "--yes", "--json", *place]) == 0
    (freed,) = json.loads(capsys.readouterr().out)["freed"]
    assert (freed["kind"], freed["run"], freed["from"]) == ("pull", "mnist-old", "arf")
    assert not old.path.exists() and new.path.exists()
    assert not sweeps[0].path.exists() and sweeps[1].path.exists()
    # What was not pulled is none, however old; and a copy that is named goes alone.
    assert main(["clean", "--pulls", "0", "--yes", "--runs", str(run.path.parent)]) == 0 and run.path.exists()
    other = pulled(folder, "other-new", 3)
    assert main(["clean", "mnist-new", "--pulls", "0", "--yes", *place]) == 0
    assert other.path.exists() and not new.path.exists()
    assert main(["clean", "--pulls", "-1", *place]) == 2 and "0 or more" in capsys.readouterr().err


def test_a_copy_whose_deletion_was_cut_short_is_still_found(tmp_path: Path) -> None:
    old = pulled(tmp_path, "mnist-old", 45)
    for path in (old.submissions_file, old.config_file):
        path.unlink()
    assert main(["clean", "--pulls", "30", "--yes", "--runs", str(tmp_path)]) == 0 and not old.path.exists()


def test_what_looks_like_a_secret_is_not_kept(run: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run.path / "secrets.yaml").write_text("password: hunter2")
    (run.path / "outputs").mkdir()
    (run.path / "outputs" / "key").write_text("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n")
    assert main(["keep", "mnist", "--to", str(tmp_path / "kept"), "--runs", str(run.path.parent)]) == 0
    assert "mnist-00000000/outputs/key, mnist-00000000/secrets.yaml" in capsys.readouterr().err
    assert b"hunter2" not in (tmp_path / "kept" / "mnist-00000000.tar").read_bytes()
