"""Slurm's accounting is down, or hangs: one short try, a word, and states from the runs' own records."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.launch.wait import _in_slurms_hands, wait_for
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client
from truba_runner.submission.outcome import Outcome

NOTED = "#!/bin/sh\necho $(basename $0) >> {calls}\n"
DOWN = f"{NOTED}echo 'sacct: error: Problem talking to the database: Connection refused' >&2\nexit 1\n"
HANGS = f"{NOTED}sleep 20\n"
NONE = f"{NOTED}echo 'Slurm accounting storage is disabled' >&2\nexit 1\n"
QUEUE = f"{NOTED}printf '1\\037RUNNING\\037akya-cuda\\037None\\0371:00\\0371:00:00\\037akya1\\n'\n"
WORD = "accounting does not answer"


class Slurm:
    """Stand-ins for squeue, whose job 1 runs, and for sacct; and a folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.runs = folder, folder / "bin", folder / "runs"
        self.bin.mkdir()
        self.stand_in("squeue", QUEUE)

    def stand_in(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text.format(calls=self.folder / "calls"))
        (self.bin / name).chmod(0o755)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []

    def run(self, job_id: str, **progress: object) -> RunDir:
        run = RunDir(self.runs / f"mnist-{job_id}")
        run.create()
        request = {"partition": "akya-cuda", "time_minutes": 90}
        run.append_submission(Event(Kind.INTENT, time=1.0, token="t", job_name="x.t", request=request))
        run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=job_id))
        if progress:
            run.write_progress(
                progress_from({"job_id": job_id, "host": "akya1", "pid": 1, "started": 10, "updated": 70, **progress})
            )
        return run


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    assert client.ACCOUNTING_SECONDS <= 5
    monkeypatch.setattr(client, "ACCOUNTING_SECONDS", 0.3)
    return made


@pytest.mark.parametrize("sacct", [DOWN, HANGS])
def test_one_short_try_a_word_and_states_from_records(
    slurm: Slurm, sacct: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.stand_in("sacct", sacct)
    slurm.run("1", state="running")
    slurm.run("2", state="failed", error={"type": "Failed", "message": "the disk is full"})
    slurm.run("3", state="interrupted")
    began = time.monotonic()
    assert main(["status", "--runs", str(slurm.runs), "--json"]) == 0
    assert time.monotonic() - began < 8
    out, err = capsys.readouterr()
    assert {row["run"]: row["state"] for row in json.loads(out)} == {
        "mnist-1": "RUNNING", "mnist-2": "FAILED", "mnist-3": "INTERRUPTED"
    }  # fmt: skip
    assert err.count(WORD) == 1 and slurm.calls() == ["squeue", "sacct"]


@pytest.mark.parametrize("command", ["status", "logs", "why", "report", "keep", "usage", "cancel"])
def test_every_command_does_without(slurm: Slurm, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.stand_in("sacct", DOWN)
    run = slurm.run("2", state="failed", error={"type": "Failed", "message": "the disk is full"})
    run.log_of("2").write_text("epoch 1\n")
    run.write_config({"name": "mnist"})
    began = time.monotonic()
    arguments = [] if command == "usage" else [run.id]
    assert main([command, *arguments, "--runs", str(slurm.runs)]) == 0
    assert time.monotonic() - began < 8
    assert WORD in capsys.readouterr().err


def test_a_site_without_accounting_is_no_news(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.stand_in("sacct", NONE)
    slurm.run("2", state="interrupted")
    assert main(["status", "--runs", str(slurm.runs)]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "why", "report", "keep", "usage", "cancel"])
def test_a_site_that_has_no_sacct_at_all(
    slurm: Slurm, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(slurm.bin))
    slurm.stand_in("squeue", "#!/bin/sh\nprintf '3\\037FAILED\\037akya-cuda\\037None\\0371:00\\0371:00\\037akya1\\n'\n")
    run = slurm.run("2", state="failed", error={"type": "Failed", "message": "the disk is full"})
    run.log_of("2").write_text("epoch 1\n")
    run.write_config({"name": "mnist"})
    arguments = [] if command == "usage" else [run.id]
    assert main([command, *arguments, "--runs", str(slurm.runs)]) == 0
    assert WORD not in capsys.readouterr().err


def test_what_only_the_queue_tells_is_not_said_to_be_accountings(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(slurm.bin))
    slurm.stand_in("squeue", "#!/bin/sh\nprintf '1\\037FAILED\\037akya-cuda\\037None\\0371:00\\0371:00\\037akya1\\n'\n")
    run = slurm.run("1", state="running")
    assert main(["why", run.id, "--runs", str(slurm.runs)]) == 0
    told = capsys.readouterr().out
    assert "squeue: State=FAILED" in told and "sacct" not in told
    assert "as failed, and neither" in told and "as completed" not in told


def test_a_finished_run_is_not_asked_about(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.stand_in("sacct", HANGS)
    run = slurm.run("2", state="finished")
    run.write_result({"metrics": {}})
    assert main(["status", "--runs", str(slurm.runs), "--json"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert not err and not slurm.calls()
    told = {key: row[key] for key in ("state", "partition", "elapsed", "time_limit")}
    assert told == {"state": "COMPLETED", "partition": "akya-cuda", "elapsed": "00:01:00", "time_limit": "01:30:00"}
    slurm.run("1", state="running")
    assert main(["status", "--runs", str(slurm.runs), "--json"]) == 0
    assert slurm.calls() == ["squeue"]


def test_a_run_is_completed_once_its_result_is_there_and_its_job_can_still_be_cancelled(
    slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.stand_in("scancel", '#!/bin/sh\necho "scancel $1" >> {calls}\n')
    run = slurm.run("1", state="running")
    run.write_result({"metrics": {}})
    assert main(["status", "--runs", str(slurm.runs), "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["COMPLETED"]
    assert main(["keep", run.id, "--runs", str(slurm.runs)]) == 2 and "it has not ended" in capsys.readouterr().err
    assert main(["cancel", run.id, "--runs", str(slurm.runs)]) == 0
    assert "cancelled mnist-1" in capsys.readouterr().out and slurm.calls()[-2:] == ["scancel", "1"]


def test_to_wait_for_a_run_needs_no_accounting(slurm: Slurm) -> None:
    slurm.stand_in("squeue", "#!/bin/sh\n")
    slurm.stand_in("sacct", DOWN)
    run = slurm.run("2", state="running")
    assert not _in_slurms_hands(run)


def test_what_was_finished_before_is_not_said_to_be_trained_now(
    slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    done, new = slurm.run("2"), slurm.run("3")
    for run in (done, new):
        run.write_result({"metrics": {}})
    outcomes = [Outcome(done.id, str(done.path), "finished"), Outcome(new.id, str(new.path), "submitted", "3")]
    assert [one.action for one in wait_for(outcomes)] == ["finished", "trained"]
    assert "mnist-2 has finished already" in capsys.readouterr().out
