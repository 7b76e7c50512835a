"""A run's files are read once for all that is told of it; events keep their form on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from damaged_runs import make_run, make_sweep

from truba_runner.runs import events
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.status import rows
from truba_runner.storage import safe_files

# Looks whole, so that it is not parsed.
CONFIG = b"name: mnist\njob: {}\ndata: {}\ntrain: {}\ncheckpoint: {}\nresources: {}\ncluster: {}\n"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("in_sweep", [True, False])
def test_a_row_opens_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_sweep: bool, finished: bool
) -> None:
    run = RunDir(tmp_path / "mnist-00000000")
    if in_sweep:
        sweep = make_sweep(tmp_path, "swept", 200, CONFIG)
        run = sweep.run(sweep.members()[0 if finished else 2].run)
    else:
        make_run(run, "100", CONFIG, finished=finished)
    opened, seen = safe_files.opened, Counter[str]()

    def counting(path: Path, within: Path) -> int:
        seen[str(path)] += 1
        return opened(path, within)

    monkeypatch.setattr(safe_files, "opened", counting)
    row = rows.row_or_damage(run.record(), {})
    assert row["state"] == ("COMPLETED" if finished else "FAILED")
    assert {"submissions.jsonl", "progress.json"} <= {Path(path).name for path in seen}
    assert set(seen.values()) == {1}, seen


def test_a_record_shows_one_moment_and_a_result_is_final(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mnist-00000000")
    make_run(run, "100", CONFIG, finished=False)
    record = run.record()
    assert not record.result and record.again() is not record
    run.write_result({"metrics": {}})
    assert not record.result and record.again().result
    finished = run.record()
    assert finished.again() is finished


def test_events_of_another_version_are_read(tmp_path: Path) -> None:
    file = tmp_path / "submissions.jsonl"
    known = {"event": "submitted", "token": "t", "job_id": "7"}
    lines = [{**known, "of_another_version": [1]}, {"event": "of another version", "job_id": "8"}]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert events.read(file) == [Event(Kind.SUBMITTED, token="t", job_id="7"), Event(Kind.OTHER, job_id="8")]
    assert not events.examined(file)[1]


@pytest.mark.parametrize(
    "record",
    [
        {"event": "intent", "time": 1.5, "token": "t", "job_name": "mnist-1.t", "request": {"partition": "barbun"}},
        {"event": "intent", "token": "t", "tasks": [["a"], ["b"]], "places": 1, "share_gpus": False, "canary": "",
         "goes_ahead": False, "numbers": [1, 3]},
        {"event": "intent", "token": "t", "sweep": "a-sweep-0", "array_index": 0},
        {"event": "started", "time": 1.5, "job_id": "", "position": [0, 0], "steps_lost": 0, "steps_per_epoch": None},
        {"event": "found rate", "learning_rate": 0.1, "suggestion": "valley", "factor": 1.0, "finder": "a-1"},
        {"event": "verified", "job_sha256": "ab", "seconds": 0.0, "first_difference": None},
    ],
)  # fmt: skip
def test_what_is_written_is_what_was_read(tmp_path: Path, record: dict[str, object]) -> None:
    assert not events.wrong_event(record)
    event = events.from_record(record)
    events.append(tmp_path / "submissions.jsonl", event)
    assert json.loads((tmp_path / "submissions.jsonl").read_text()) == record
    assert events.read(tmp_path / "submissions.jsonl") == [event]
