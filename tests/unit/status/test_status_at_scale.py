"""Several hundred runs cost one squeue and one sacct."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir

COUNT = 300
SQUEUE = """#!/bin/sh
echo squeue >> {calls}
for i in $(seq 0 {last_live}); do
  printf '%s\\037RUNNING\\037akya-cuda\\037None\\0371:00\\0371:00:00\\037akya1\\n' $i
done
"""
SACCT = """#!/bin/sh
echo sacct >> {calls}
for i in $(seq {first_ended} {last}); do
  echo "$i|TIMEOUT|akya-cuda|01:00:00|01:00:00|akya1|0:0"
done
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs 0 to 99 in the queue, the rest known to accounting alone."""
    runs = tmp_path / "runs"
    for number in range(COUNT):
        run = RunDir(runs / f"mnist-{number:08d}")
        run.create()
        run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=str(number)))
    for name, text in (("squeue", SQUEUE), ("sacct", SACCT)):
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        numbers = {"last_live": 99, "first_ended": 100, "last": COUNT - 1}
        stand_in.write_text(text.format(calls=tmp_path / "calls", **numbers))
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return runs


def test_one_squeue_and_one_sacct(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--runs", str(fleet), "--json"]) == 0
    rows = {row["run"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == COUNT
    assert rows["mnist-00000000"] == "RUNNING" and rows["mnist-00000299"] == "TIMEOUT"
    assert (tmp_path / "calls").read_text().split() == ["squeue", "sacct"]


def test_the_table_holds_every_run(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--runs", str(fleet)]) == 0
    assert capsys.readouterr().out.count("mnist-00000") == COUNT


def test_a_prefix_must_be_of_one_run(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--runs", str(fleet), "mnist-0000029"]) == 2
    assert "10 runs start with it" in capsys.readouterr().err
    assert main(["status", "--runs", str(fleet), "mnist-00000299"]) == 0
    assert main(["logs", "--runs", str(fleet), "mist"]) == 2
    assert "and 288 more" in capsys.readouterr().err
