"""Records of a sweep as a whole: its runs with their values, and its job arrays.

RUNS/.sweeps/ID/sweep.json         the command, the swept keys, each run with its values
RUNS/.sweeps/ID/submissions.jsonl  requests to Slurm for each array and its answers, one event per line
RUNS/.sweeps/ID/logs/              output of array tasks before and after their runs; empty logs are removed
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.runs import events, record_files, record_shapes
from truba_runner.runs.events import SWEEPS, Event, Kind, sweep_events_file
from truba_runner.runs.record_shapes import (
    Check,
    checked,
    checks_of,
    is_name,
    is_plain,
    is_scalar,
    is_text,
    list_of,
    map_of,
    record_of,
)
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import safe_files
from truba_runner.storage.files import finite, write_atomically


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its id, and its value for each swept key."""

    run: str = checked(is_plain, "")
    values: Mapping[str, Any] = checked(map_of(is_scalar), {})
    # The learning-rate finder's run, and which of its suggestions this run takes (valley/10); both empty if none.
    finder: str = checked(is_name, "")
    takes: str = checked(is_text, "")


@dataclass(frozen=True)
class SweepDir:
    """The records of one sweep. `path` is absolute; its last part is the sweep's id."""

    path: Path

    @classmethod
    def of(cls, runs_folder: Path, sweep: str) -> SweepDir:
        """Return the sweep of this id."""
        return cls(runs_folder / SWEEPS / sweep)

    @property
    def id(self) -> str:
        """The sweep's id: `NAME-sweep-HASH`."""
        return self.path.name

    @property
    def runs_folder(self) -> Path:
        """The folder of its runs."""
        return self.path.parent.parent

    @property
    def events_file(self) -> Path:
        """The event log: one JSON object per line."""
        return sweep_events_file(self.runs_folder, self.id)

    @property
    def logs(self) -> Path:
        """The folder of its array tasks' output."""
        return self.path / "logs"

    @property
    def sweeper(self) -> RunDir:
        """The records of the job of a sweeper that waits for values (sweeps/sweeper_job.py)."""
        return RunDir(self.path / "sweeper")

    def run(self, run_id: str) -> RunDir:
        """Return one of its runs."""
        return RunDir(self.runs_folder / run_id)

    def append(self, event: Event) -> None:
        """Append one event and fsync it."""
        events.append(self.events_file, event)

    def events(self) -> list[Event]:
        """Return all events, oldest first."""
        return events.read(self.events_file)

    def describe(self, members: Iterable[Member], **about: Any) -> None:
        """Add runs to `sweep.json`, after those already there: a sweeper may ask for runs in batches."""
        known = {member.run: member for member in self.members()}
        for member in members:
            known.setdefault(member.run, member)
        keys = list(dict.fromkeys(key for member in known.values() for key in member.values))
        runs = [_as_record(member) for member in known.values()]
        for folder in (self.runs_folder, self.path.parent, self.path, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = {**about, "keys": keys, "runs": runs}
        write_atomically(self.path / "sweep.json", (json.dumps(finite(record)) + "\n").encode())

    def description(self) -> dict[str, Any]:
        """Return what `describe` wrote; empty if it is missing or damaged."""
        try:
            return record_files.read_object(self.path, "sweep.json", wrong_sweep)
        except (OSError, record_shapes.Damaged):  # Counts as missing; `damage` reports what is wrong with it.
            return {}

    def members(self) -> list[Member]:
        """Return its runs, in the order of the command line."""
        return [Member(**one) for one in self.description().get("runs", [])]

    def values_of(self, run_id: str) -> dict[str, Any]:
        """Return a run's value for each swept key."""
        return next((dict(member.values) for member in self.members() if member.run == run_id), {})


def sweep_of(run: RunDir) -> SweepDir | None:
    """Return the sweep of the run's last submission; None if it was not part of one."""
    return _last_array(run)[0]


def task_log(run: RunDir, job_id: str) -> Path | None:
    """Return an array task's log of before and after its runs: a failed set-up, Slurm's messages; None if empty."""
    if (sweep := _last_array(run)[0]) is None:
        return None
    log = sweep.logs / f"{job_id}_0_log.out"
    return log if safe_files.is_file(log) and safe_files.is_folder(sweep.logs) and log.lstat().st_size else None


def sharing(run: RunDir) -> list[RunDir]:
    """Return the other runs packed into this run's job."""
    sweep, intent = _last_array(run)
    for event in sweep.events() if sweep else ():
        if sweep and event.kind == Kind.INTENT and event.token == intent.token:
            with suppress(IndexError, ValueError):  # A damaged intent may lack this task.
                return [one for one in runs_of_task(sweep, event, intent.array_index or 0) if one.id != run.id]
    return []


def _last_array(run: RunDir) -> tuple[SweepDir | None, Event]:
    intent = run.record().intent
    return SweepDir.of(run.path.parent, intent.sweep) if intent.sweep else None, intent


def wrong_sweep(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `sweep.json`; empty if nothing is."""
    member = checks_of(Member)
    ends = {"", "min", "max"}
    fields: dict[str, Check] = {
        "runs": list_of(record_of(("run", "values"), **member)),
        "keys": list_of(is_text),
        "monitor": is_text,
        "mode": lambda value: is_text(value) and value in ends,
    }
    if why := record_shapes.wrong(record, ("runs",), fields):
        return why
    unknown = {name for one in record["runs"] for name in one} - member.keys()
    return f"runs={sorted(unknown)}" if unknown else ""


def identity(names: Iterable[str], content: Sequence[str]) -> str:
    """Return a sweep's id: its experiment's name, or `several`, and a hash of its runs' `content` in any order."""
    own = sorted(set(names))
    digest = hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()[:8]
    return f"{own[0] if len(own) == 1 else 'several'}-sweep-{digest}"


def intent_of(sweep: SweepDir, token: str) -> Event:
    """Return the intent of one of a sweep's job arrays.

    Raises:
        truba_runner.errors.Failed: the sweep's record does not have it.
    """
    for event in sweep.events():
        if event.kind == Kind.INTENT and event.token == token:
            return event
    raise Failed(
        "{file} does not contain the submission {token}; was it moved or deleted?", file=sweep.events_file, token=token
    )


def runs_of_task(sweep: SweepDir, intent: Event, number: int) -> list[RunDir]:
    """Return the runs of an array task, according to the array's intent."""
    numbers = intent.numbers or range(len(intent.tasks))
    return [sweep.run(run_id) for run_id in intent.tasks[list(numbers).index(number)]]


def _as_record(member: Member) -> dict[str, Any]:
    finder = {"finder": member.finder, "takes": member.takes} if member.finder else {}
    return {"run": member.run, "values": _plain(member.values), **finder}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if _has_word_in_json(value) else str(value) for key, value in values.items()}


def _has_word_in_json(value: Any) -> bool:
    """Whether JSON keeps a value distinct from all others: NaN and both infinities would all become null."""
    return value is None or (isinstance(value, (bool, int, float)) and math.isfinite(value))
