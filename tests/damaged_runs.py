"""Create runs, a search and a sweep on disk, and damage their records as a full disk or another user might."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from truba_runner.runs.events import Event, Kind, from_record
from truba_runner.runs.record_shapes import RateCurve, progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search.directory import SearchDir

TIME = 1_790_000_000.0
TOKEN = "0a1b2c3d"
REQUEST = {"partition": "akya-cuda", "account": "abc", "nodes": 1, "gpus": 1}
# Wrong values for a field.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**400, 1e400, float("nan"), "", "text", "../../elsewhere", "/etc/passwd", "\ud800",
    "\x1b[2J", "{run} %s [red]", [], [[]], {}, {"a": {"b": []}}, ["text"], [1, 2, 3], "9" * 30, "12_4", "-x",
    "x" * 5000,
    "a\0b",
)  # fmt: skip


def events(job_id: str, **more: Any) -> list[dict[str, Any]]:
    """Return the events of a run that was submitted and started once."""
    about = {"job_file": "/project/jobs/mnist.py", "job_sha256": "ab", "project": "/project", "versions": {"x": "1"}}
    code = {"archive": "/runs/.code/code-00ff.tar.gz", "sha256": "cd", "files": 3}
    given = {"time": TIME, "token": TOKEN, "job_name": f"mnist.{TOKEN}", "git": {"commit": "abc", "dirty": True}}
    intent = {"event": "intent", **given, **about, "code": code, "environment": {}, "request": REQUEST, "sbatch": {}}
    started = {"event": "started", "time": TIME, "job_id": job_id, "position": [0, 0], "host": "akya1"}
    return [
        {**intent, **more},
        {"event": "submitted", "token": TOKEN, "job_id": job_id},
        {**started, "steps_lost": 0, "steps_per_epoch": 10, "job_name": f"mnist.{TOKEN}"},
        {"event": "restored", "time": TIME, "seconds": 0.5, "position": [0, 0]},
        {"event": "found rate", "time": TIME, "learning_rate": 0.01},
    ]


def make_run(run: RunDir, job_id: str, config: bytes, finished: bool = True, **more: Any) -> RunDir:
    """Create a run with all its records."""
    run.create()
    run.write_config_text(config, durable=False)
    for event in events(job_id, **more):
        run.append_submission(from_record(event), durable=False)
    metrics = {"loss": 0.5, "val_accuracy": 0.9}
    error = {"type": "ValueError", "message": "no", "file": "/project/jobs/mnist.py", "line": 3, "code": "x"}
    progress = {"state": "finished" if finished else "failed", "job_id": job_id, "host": "akya1", "pid": 7}
    steps = {"epoch": 2, "epochs": 2, "step": 10, "steps_per_epoch": 10, "started": TIME, "updated": TIME + 60}
    run.write_progress(
        progress_from({**progress, **steps, "metrics": metrics, **({} if finished else {"error": error})})
    )
    run.write_history([{"epoch": 1, "loss": 0.7, "seconds": 3.0}, {"epoch": 2, "loss": 0.5, "seconds": 3.0}], False)
    if finished:
        result = {"metrics": metrics, "notes": ["No test data."], "seconds_training": 60.0, "parameters": 1000}
        more = {"versions": {"keras": "3"}, "devices": ["GPU:0"], "data": {"name": "mnist"}, "weights_sha256": "ef"}
        run.write_result({**result, **more, "restarts": 0})
    run.plots.mkdir(exist_ok=True)
    (run.plots / "learning_curves.png").write_bytes(b"PNG")
    run.log_of(job_id).write_text(f"run {run.id}, job {job_id}, on akya1, data mnist\nepoch 2/2\n")
    run.write_rate_curve("find", RateCurve({"valley": 0.01}, [0.1, 0.2], [1.0, None]))
    return run


def make_search(path: Path, config: bytes) -> SearchDir:
    """Create a search with two trials, one finished and one running."""
    search = SearchDir(path)
    search.create()
    search.write_config_text(config, durable=False)
    search.append_submission(Event(Kind.SEARCH, TIME, job_file="/x.py", job_sha256="ab"), durable=False)
    worker = search.create_worker(0)
    for event in events("300_0", array_index=0):
        worker.append_submission(from_record(event), durable=False)
    values = {"rate": 0.1, "tuner/bracket": 1, "tuner/round": 0, "tuner/epochs": 2, "tuner/initial_epoch": 0}
    told = {"trial_id": "0000", "hyperparameters": {"values": values}, "status": "COMPLETED", "score": 0.3}
    lease = {"worker": worker.id, "start": "s", "token": 1, "retry": 0, "position": None, "died": 0, "abandoned": 0}
    running = {**told, "trial_id": "0001", "status": "RUNNING", "score": None, "message": None}
    state = {
        "format": 1, "identity": "abc", "oracle": {}, "tokens": 1, "finished": False, "failed": "",
        "trials": {"0000": {**told, "message": None}, "0001": running}, "open": {"0001": lease},
        "objective": {"name": "val_loss", "direction": "min"},
    }  # fmt: skip
    search.state_file.write_text(json.dumps(state))
    for trial in ("0000", "0001"):
        make_run(search.trial(trial), "300_0", config)
    return search


def make_sweep(runs: Path, name: str, first_job: int, config: bytes) -> SweepDir:
    """Create a sweep of three runs in one array; one of them has a finder run."""
    sweep = SweepDir.of(runs, f"{name}-sweep-00000000")
    names = [f"{name}-0000000{number}" for number in range(3)]
    finder = make_run(RunDir(runs / f"{name}-0000000f"), str(first_job + 1), config)
    takes = [{}, {}, {"finder": finder.id, "takes": "valley/10"}]
    members = [Member(one, {"train.seed": number, "job.options.dropout": 0.1}, **takes[number])
               for number, one in enumerate(names)]  # fmt: skip
    sweep.describe(members, name=name, command=["-m"], monitor="loss", mode="min")
    intent = {**events(str(first_job))[0], "tasks": [[one] for one in names], "places": 1, "canary": ""}
    sweep.append(from_record({**intent, "goes_ahead": False, "share_gpus": True}))
    sweep.append(Event(Kind.SUBMITTED, token=TOKEN, job_id=str(first_job)))
    for number, one in enumerate(names):
        run = make_run(RunDir(runs / one), f"{first_job}_{number}", config, finished=number < 2)
        own = {"event": "intent", "time": TIME, "token": TOKEN, "job_name": "x", "sweep": sweep.id}
        lines = run.submissions_file.read_text().splitlines()[2:]
        run.submissions_file.write_text("\n".join([json.dumps({**own, "array_index": number}), *lines]) + "\n")
    return sweep


# -- damage ------------------------------------------------------------------------------------------------------


def damage(file: Path, chance: random.Random) -> str:
    """Damage a record in one of many ways and return a description."""
    ways: list[Callable[[Path, random.Random], str]] = [_other_value] * 12 + [_bytes] * 6 + [_kind]
    return f"{file.name}: {chance.choice(ways)(file, chance)}"


def _other_value(file: Path, chance: random.Random) -> str:
    """Replace or delete a field of the record."""
    text = file.read_text()
    if file.suffix == ".csv":
        cells = [line.split(",") for line in text.splitlines()]
        row = chance.choice(cells)
        row[chance.randrange(len(row))] = word = str(chance.choice(VALUES))[:50].replace("\ud800", "\x00")
        file.write_text("\n".join(",".join(row) for row in cells), errors="replace")
        return f"a cell is {word!r}"
    load: Callable[[str], Any] = yaml.safe_load if file.suffix == ".yaml" else json.loads
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    number = chance.randrange(len(lines))
    record = load(lines[number])
    at = record
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = chance.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.6:
            at = at[key]
            continue
        break
    if chance.random() < 0.15:
        told = f"{key!r} is gone"
        del at[key]
    else:
        at[key] = chance.choice(VALUES)
        told = f"{key!r} is {str(at[key])[:40]!r}"
    lines[number] = json.dumps(record)
    file.write_text("\n".join(lines) + "\n")
    return told


def _bytes(file: Path, chance: random.Random) -> str:
    """Cut off, change or insert bytes."""
    content = file.read_bytes()
    at, of = chance.randrange(len(content)), chance.randrange(len(content))
    changed = {
        "cut": content[:at],
        "empty": b"",
        "zeros": content[:at] + bytes(len(content) - at),
        "one byte": content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
        "brackets": content[:at] + b"[" * 100_000,
        "nested": b"[" * 50_000 + b"]" * 50_000,
        "deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "twice": content[:at] + content,
        "a part": content[min(at, of) : max(at, of)],
        "not UTF-8": content[:at] + b"\xff\xfe" + content[at:],
        "digits": content[:at] + b"9" * 6000 + content[at:],
        "a list": b"[1, 2]\n",
        "a number": b"7\n",
        "bare": b"{}\n",
    }
    way = chance.choice(list(changed))
    file.write_bytes(changed[way])
    return way


def _kind(file: Path, chance: random.Random) -> str:
    """Replace the file by a folder, pipe or link, or delete it."""
    content = file.read_bytes()
    file.unlink()
    way = chance.choice(["gone", "folder", "pipe", "link", "loop", "dangling"])
    if way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "link":
        (beside := file.with_name(f"{file.name}.else")).write_bytes(content)
        file.symlink_to(beside)
    elif way in {"loop", "dangling"}:
        file.symlink_to(file.name if way == "loop" else "nowhere")
    return way
