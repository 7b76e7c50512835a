"""Events of a run's submissions: what `submissions.jsonl` holds, one JSON object per line, only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.runs import record_shapes
from truba_runner.runs.record_shapes import (
    checked,
    is_count,
    is_finite,
    is_job_id,
    is_moment,
    is_name,
    is_text,
    list_of,
    map_of,
    or_none,
    record_of,
)
from truba_runner.storage import safe_files

# Folder of the sweeps' own records, in the runs folder.
SWEEPS = ".sweeps"


class Kind(str, Enum):
    """What an event reports; in JSON, its key `event`."""

    # sbatch is about to be called. An array's has the `tasks`; each of its runs has a short one that names the `sweep`.
    INTENT = "intent"
    # Slurm has taken the job of an intent, has refused it, or has not answered in time; the job was looked for in vain.
    SUBMITTED = "submitted"
    REFUSED = "refused"
    UNANSWERED = "unanswered"
    LOST = "lost"
    # A run starts on this machine, without Slurm; written again once its process is known.
    LOCAL = "local"
    # A search was started; a worker of it takes a trial.
    SEARCH = "search"
    LEASED = "leased"
    # The job has begun to train, has loaded a checkpoint, or has nothing to do, as another job has the submission.
    STARTED = "started"
    RESTORED = "restored"
    DUPLICATE = "duplicate"
    # The job's start was preempted; it goes back to the queue; its local process was killed by a signal.
    BROKEN_OFF = "broken_off"
    REQUEUED = "requeued"
    KILLED = "killed"
    # A job has checked a node before it trains; this start has ended because of a fault of the node.
    LOOKED = "looked"
    BAD_NODE = "bad_node"
    # The canary has finished its first epoch, so that the array may start; or it failed, so that the array never does.
    RELEASED = "released"
    DROPPED = "dropped"
    # A learning-rate finder's rate was taken; `checkpoint.verify` has compared a short training.
    FOUND_RATE = "found rate"
    VERIFIED = "verified"
    # Any kind that another version of this package has written.
    OTHER = ""

    @classmethod
    def _missing_(cls, value: object) -> Kind:
        return cls.OTHER


def _is_any(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Event:
    """One event. A field that its record lacks has the default, which is also what other kinds of events have there."""

    kind: Kind = Kind.OTHER
    # Seconds since 1970.
    time: float = checked(is_moment, 0.0)
    # As in Slurm: 123, or 123_4 for a task of an array; `local-…` without Slurm.
    job_id: str = checked(is_job_id, "")
    # Joins the events of one submission; the job's name in the queue ends with it.
    token: str = checked(is_text, "")
    job_name: str = checked(is_text, "")

    # -- intent, local: the submission. `request`: slurm.request.Request; `sbatch`: parameters under submitit's names
    request: Mapping[str, Any] = checked(record_of(account=or_none(is_text), partition=or_none(is_text)), {})
    sbatch: Mapping[str, Any] = checked(map_of(_is_any), {})
    # Nodes that are excluded because they are known as bad, and what is wrong with each.
    bad_nodes: Mapping[str, str] = checked(map_of(is_text), {})
    # What was found out about the job's Python.
    environment: Mapping[str, Any] = checked(map_of(_is_any), {})
    # The run whose learning rate this one takes.
    finder: str = checked(is_text, "")

    # -- intent, local, search, leased: the code. `code`: `archive`, `sha256` and number of `files` of its snapshot
    job_file: str = checked(is_text, "")
    job_sha256: str = checked(is_text, "")
    project: str = checked(is_text, "")
    code: Mapping[str, Any] = checked(record_of(("archive",), archive=is_text, sha256=is_text), {})
    # `commit`, and whether files differed from it (`dirty`).
    git: Mapping[str, Any] = checked(record_of(commit=is_text), {})
    versions: Mapping[str, str | None] = checked(map_of(or_none(is_text)), {})

    # -- intent of a run in an array: its sweep, and the number of its task
    sweep: str = checked(record_shapes.is_plain, "")
    array_index: int | None = checked(is_count, None)

    # -- intent of an array: the runs of each task, the tasks' numbers if not 0, 1, 2…, and how many run at once in one
    tasks: Sequence[Sequence[str]] = checked(list_of(list_of(record_shapes.is_plain)), ())
    numbers: Sequence[int] = checked(list_of(is_count), ())
    places: int = checked(is_count, 1)
    # Whether the runs of a task share its GPUs.
    share_gpus: bool = checked(_is_any, False)
    # The run that must finish an epoch before this array starts; and whether this array's only run is such a one.
    canary: str = checked(is_name, "")
    goes_ahead: bool = checked(_is_any, False)

    # -- intent of a sweeper: its command line
    command: Sequence[str] = checked(_is_any, ())

    # -- submitted: whether the job was found in the queue by a later command
    adopted: bool = checked(_is_any, False)
    # -- looked, bad_node: the node, what was seen there (by check), the name of the check that failed
    node: str = checked(is_text, "")
    seen: Mapping[str, Any] = checked(map_of(_is_any), {})
    check: str = checked(is_text, "")
    # -- refused: Slurm's words. bad_node: what is wrong. dropped: the reason. killed: the signal's name
    message: str = checked(is_text, "")
    why: str = checked(is_text, "")
    signal: str = checked(is_text, "")

    # -- local, started: the machine, the process, its Python
    host: str = checked(is_text, "")
    pid: int = checked(is_count, 0)
    python: str = checked(_is_any, "")
    # -- started, restored: epoch and step of the checkpoint. started: steps that are trained again
    position: Sequence[int] | None = checked(record_shapes.is_position, None)
    steps_lost: int = checked(is_count, 0)
    steps_per_epoch: int | None = checked(or_none(is_count), None)
    # -- restored, verified, looked: the duration
    seconds: float = checked(is_finite, 0.0)
    # -- leased: the search's worker
    worker: str = checked(_is_any, "")
    # -- found rate: the rate, and the suggestion and factor that it comes from
    learning_rate: float | None = checked(is_finite, None)
    suggestion: str = checked(_is_any, "")
    factor: float | None = checked(_is_any, None)
    suggestions: Mapping[str, float | None] = checked(_is_any, {})
    # -- verified: what an interruption changes; None if nothing
    first_difference: Mapping[str, Any] | None = checked(_is_any, None)


_CHECKS = record_shapes.checks_of(Event)
_DEFAULTS = vars(Event())
# Fields that a record must have, by its kind.
_REQUIRED: Mapping[str, Sequence[str]] = {
    "intent": ("token",),
    "submitted": ("job_id",),
    "started": ("job_id",),
    "local": ("job_id",),
    "duplicate": ("job_id",),
    "restored": ("seconds",),
    "dropped": ("why",),
    "killed": ("signal",),
    "looked": ("node",),
    "bad_node": ("node", "check"),
}
# Fields that are written even with their defaults, as earlier versions read them without asking whether they are there.
_WRITTEN: Mapping[str, Sequence[str]] = {
    **_REQUIRED,
    "started": ("job_id", "steps_lost", "steps_per_epoch"),
    "verified": ("job_sha256", "seconds", "first_difference"),
}
_WRITTEN_OF_ARRAYS = ("token", "tasks", "places", "share_gpus", "canary", "goes_ahead")


def wrong_event(record: Any) -> str:
    """Describe what is wrong with a line of an event file; empty if nothing is."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return "event=?"
    kind = record["event"]
    in_an_array = ["array_index"] if kind == "intent" and "sweep" in record else []
    return record_shapes.wrong(record, [*_REQUIRED.get(kind, ()), *in_an_array], _CHECKS)


def from_record(record: Mapping[str, Any]) -> Event:
    """Return the event of a record that `wrong_event` finds nothing wrong with."""
    values = {name: value for name, value in record.items() if name in _CHECKS}
    if "position" in values:
        values["position"] = tuple(values["position"])
    return Event(Kind(record.get("event")), **values)


def as_record(event: Event) -> dict[str, Any]:
    """Return an event in the form of its line."""
    always = _WRITTEN_OF_ARRAYS if event.tasks else _WRITTEN.get(event.kind, ())
    own = {name: getattr(event, name) for name in _CHECKS}
    own = {name: value for name, value in own.items() if value != _DEFAULTS[name] or name in always}
    return {"event": event.kind, **own}


def completed(event: Event, by: Event) -> Event:
    """Return an event with the fields of `by` where it has none."""
    own = {name: value for name, value in vars(event).items() if value != _DEFAULTS[name]}
    return replace(by, **own)


def last_intent(events: Sequence[Event]) -> Event:
    """Return the intent of the last submission; without a kind if there was none."""
    return next((event for event in reversed(events) if event.kind == Kind.INTENT), Event())


def sweep_events_file(runs_folder: Path, sweep: str) -> Path:
    """Return the event log of a sweep's job arrays."""
    return runs_folder / SWEEPS / sweep / "submissions.jsonl"


def with_arrays(own: Sequence[Event], runs_folder: Path) -> list[Event]:
    """Return a run's events, given those of its own file, with those of its job arrays in the records of its sweeps.

    Raises:
        OSError: the file of a sweep cannot be read.
    """
    return [one for event in own for one in (_from_sweep(runs_folder, event) if event.sweep else [event])]


def _from_sweep(runs_folder: Path, intent: Event) -> list[Event]:
    """Return a run's intent completed by its array's, and the array's later events with the run's own job id."""
    events = [intent]
    for event in read(sweep_events_file(runs_folder, intent.sweep)):
        if event.token != intent.token:
            continue
        if event.kind == Kind.INTENT:
            events[0] = replace(completed(intent, event), tasks=())
        elif event.job_id:
            events.append(replace(event, job_id=f"{event.job_id}_{intent.array_index}"))
        else:
            events.append(event)
    return events


def append(file: Path, event: Event, durable: bool = True) -> None:
    """Append one event; if `durable`, fsync it, so that it survives a crash of the machine."""
    line = (json.dumps(as_record(event), ensure_ascii=False) + "\n").encode()
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # A disk that fills up writes a part of the line, and raises at the next write.
            line = line[os.write(handle, line) :]
        if durable:
            os.fsync(handle)
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(handle)


def read(file: Path) -> list[Event]:
    """Return all events, oldest first, without invalid lines.

    Raises:
        OSError: the file cannot be read.
    """
    return examined(file)[0]


def examined(path: Path) -> tuple[list[Event], str]:
    """Return a file's events, oldest first, and what is wrong with the first invalid one; empty if nothing is.

    Lines that a full disk or a kill cut short are skipped.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        about = path.lstat()
        found, first = _examined(path, about.st_ino, about.st_ctime_ns, about.st_size)
    except FileNotFoundError:
        return [], ""
    return list(found), first


# Cached because a command reads a run's events many times.
@lru_cache(maxsize=4096)
def _examined(path: Path, *_seen: int) -> tuple[list[Event], str]:
    text = safe_files.read(path, path.parent).decode(errors="replace")
    known: list[Event] = []
    first = ""
    for number, line in enumerate(text.split("\n"), start=1):
        event, why = _event(line, path.name)
        if event is not None:
            known.append(event)
        elif why:
            first = first or _("line {number} of {file} holds {what}", number=number, file=path.name, what=why)
    if not known and not first and text.strip():
        first = _("{file} holds no event", file=path.name)
    return known, first


def _event(line: str, name: str) -> tuple[Event | None, str]:
    """Return a line's event, or what is wrong with the line; neither if it was cut short."""
    try:
        record = record_shapes.parsed(line, name)
    except record_shapes.Damaged as error:
        return None, "[[[…" if isinstance(error.__cause__, RecursionError) else ""
    why = wrong_event(record) or ("\\u0000" in line and _with_nul(record))
    return (None, why) if why else (from_record(record), "")


def _with_nul(value: Any, name: str = "event") -> str:
    """Return the first field of an event with a NUL character, which no path or command argument may contain."""
    if isinstance(value, str):
        return f"{name}={value[: record_shapes.SHOWN]!r}" if "\0" in value else ""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else ((name, one) for one in value)
    return next((why for key, one in parts if (why := _with_nul(key, name) or _with_nul(one, str(key)))), "")
