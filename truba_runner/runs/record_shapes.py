"""Fields of the records of runs, and checks of their types, on which readers rely. Pure.

A record that a full disk has cut short, or that another user has written, may hold anything: a string among numbers, a
path in place of a name. No reader relies on fields that are not listed here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from truba_runner.language import _

Check = Callable[[Any], bool]

# Larger numbers would overflow in C code and time functions.
MOST = 2**53
# In the year 9987: Python's dates end with 9999.
_LAST_SECOND = 253_000_000_000.0
# Slurm's job id, `JOB_TASK` in an array, `JOB.LEASE` for a trial; or an id of our own, such as local-20261130-1200-77.
_JOB_ID = re.compile(r"(\d{1,10}(_\d{1,10})?(\.\d{1,18})?|[A-Za-z][\w.-]*)?")
# Characters of a wrong value that are shown.
SHOWN = 60
_PLAIN = re.compile(r"[^/\0]{1,255}")


class Damaged(ValueError):
    """A record that is cut short, or holds something else than it should."""


def parsed(text: bytes | str, name: str) -> Any:
    """Parse JSON; `name` is the file's name, for the error.

    Raises:
        Damaged: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Damaged(_("{file} is nested too deeply", file=name)) from error
    except ValueError as error:  # Also raised for bytes that are not UTF-8, and numbers of thousands of digits.
        raise Damaged(_("{file} is cut short or not JSON ({error})", file=name, error=error)) from error


def is_plain(name: Any) -> bool:
    """Whether `name` is a plain file name, as runs, sweeps and trials have: no path, not hidden."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and not name.startswith(".")


def is_text(value: Any) -> bool:
    """Whether `value` is a string."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of 0 or more that C code can hold."""
    return type(value) is int and 0 <= value < MOST


def is_number(value: Any) -> bool:
    """Whether `value` is a number, NaN and infinity included."""
    return type(value) is float or (type(value) is int and abs(value) < MOST)


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return is_number(value) and math.isfinite(value)


def is_moment(value: Any) -> bool:
    """Whether `value` is a time in seconds since 1970 that Python's dates can express."""
    return is_finite(value) and 0 <= value < _LAST_SECOND


def is_job_id(value: Any) -> bool:
    """Whether `value` is the id of a job, of an array task, of a trial or of a local run; or empty."""
    return is_text(value) and _JOB_ID.fullmatch(value) is not None


def is_scalar(value: Any) -> bool:
    """Whether `value` is one that a swept key may have."""
    return value is None or isinstance(value, (str, bool)) or is_number(value)


def is_name(value: Any) -> bool:
    """Whether `value` is a plain file name, or empty."""
    return value == "" or is_plain(value)


def is_position(value: Any) -> bool:
    """Whether `value` is an epoch and a step."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


def or_none(check: Check) -> Check:
    """Return a check that accepts null too."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """Return a check for a list whose items pass `check`."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def map_of(check: Check) -> Check:
    """Return a check for a mapping whose values pass `check`."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def record_of(required: Sequence[str] = (), **fields: Check) -> Check:
    """Return a check for a mapping that has the `required` keys and whose values pass their checks in `fields`."""
    return lambda value: isinstance(value, dict) and not wrong(value, required, fields)


def wrong(record: Mapping[str, Any], required: Sequence[str], fields: Mapping[str, Check]) -> str:
    """Return the first missing field as `NAME=?`, else the first of a wrong type as `NAME=VALUE`, else empty."""
    for name in required:
        if name not in record:
            return f"{name}=?"
    for name, value in record.items():
        if name in fields and not fields[name](value):
            text = repr(value)
            return f"{name}={text[:SHOWN]}" + ("…" if len(text) > SHOWN else "")
    return ""


def checked(check: Check, default: Any) -> Any:
    """Return a dataclass field with the check of its value in JSON; `default`: its value if a record lacks it."""
    metadata = {"check": check}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def checks_of(record: Any) -> dict[str, Check]:
    """Return the checks of a dataclass' fields, by name."""
    return {one.name: one.metadata["check"] for one in dataclasses.fields(record) if "check" in one.metadata}


_METRICS = map_of(or_none(is_number))


def _error(value: Any) -> bool:
    required = ("type", "message", *(("line", "code") if isinstance(value, dict) and "file" in value else ()))
    return isinstance(value, dict) and not wrong(value, required, checks_of(ErrorRecord))


@dataclass(frozen=True)
class ErrorRecord:
    """The exception that ended a run."""

    # The name of its class; `Failed` for an error of this package, whose message is a sentence.
    type: str = checked(is_text, "")
    message: str = checked(is_text, "")
    # Whether the run was given up after several starts without progress.
    gave_up: bool = checked(lambda value: True, False)
    # The innermost line of the user's code in the traceback; empty if there is none.
    file: str = checked(is_text, "")
    line: int | None = checked(or_none(is_count), None)
    code: str = checked(is_text, "")

    def at_its_line(self, text: str) -> str:
        """Return `text` with the line of the user's code, if there is one."""
        if not self.file:
            return text
        return _("{error} at {file}:{line}: {code}", error=text, file=self.file, line=self.line, code=self.code)


class Stage(str, Enum):
    """How far a job has come, as it records it itself."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    # Not on record, or another version's.
    UNKNOWN = ""

    @classmethod
    def _missing_(cls, value: object) -> Stage:
        return cls.UNKNOWN


@dataclass(frozen=True)
class ProgressRecord:
    """What `progress.json` holds of a run's last job. False if there is no record."""

    state: Stage = checked(is_text, Stage.UNKNOWN)
    # The job, the machine and the process that write it.
    job_id: str = checked(is_job_id, "")
    host: str = checked(is_text, "")
    pid: int | None = checked(is_count, None)
    # When the process began, and when it wrote the record; seconds since 1970.
    started: float | None = checked(is_moment, None)
    updated: float | None = checked(is_moment, None)
    # Counted from 1; `step` within the epoch. `steps_per_epoch` is 0 while it is unknown.
    epoch: int | None = checked(or_none(is_count), None)
    epochs: int | None = checked(or_none(is_count), None)
    step: int | None = checked(or_none(is_count), None)
    steps_per_epoch: int | None = checked(or_none(is_count), None)
    # Of the last step or epoch; None in place of NaN and infinity.
    metrics: Mapping[str, float | None] = checked(_METRICS, {})
    # What the user should know of a run that goes on.
    warning: str = checked(is_text, "")
    error: ErrorRecord | None = checked(_error, None)
    # The trial that a search's worker trains.
    trial: str = checked(is_text, "")

    def __bool__(self) -> bool:
        """Whether there is a record."""
        return self != _NO_PROGRESS


_NO_PROGRESS = ProgressRecord()


@dataclass(frozen=True)
class RateCurve:
    """What a learning-rate finder has found: `lr_find_NAME.json`."""

    # The learning rate by the name of the method; None if it found none.
    suggestions: Mapping[str, float | None] = checked(map_of(or_none(is_finite)), {})
    learning_rates: Sequence[float] = checked(list_of(lambda value: is_finite(value) and value > 0), ())
    # One for each rate; None in place of NaN and infinity.
    losses: Sequence[float | None] = checked(list_of(or_none(is_number)), ())


@dataclass(frozen=True)
class ResultRecord:
    """What `result.json` holds: a run that has it is finished. False if there is none."""

    # Of the last epoch, and of the evaluation at the end; None in place of NaN and infinity.
    metrics: Mapping[str, float | None] = checked(_METRICS, {})
    seconds_training: float | None = checked(or_none(is_finite), None)
    # What the user should know, and what is missing from the result and why.
    warning: str = checked(is_text, "")
    notes: Sequence[str] = checked(list_of(is_text), ())
    # Of the network: its kind, its number of parameters, and the SHA-256 of its weights.
    model: str = checked(is_text, "")
    parameters: int | None = checked(is_count, None)
    weights_sha256: str = checked(is_text, "")
    devices: Sequence[str] = checked(list_of(is_text), ())
    versions: Mapping[str, str | None] = checked(map_of(or_none(is_text)), {})
    # `name` and `file`.
    data: Mapping[str, Any] = checked(record_of(name=is_text), {})
    # The whole record, with what the backend, the search or the finder that wrote it has added.
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is a result."""
        return bool(self.entries)


def result_from(record: Mapping[str, Any]) -> ResultRecord:
    """Return the result of a record that `wrong_result` finds nothing wrong with."""
    return ResultRecord(**_known(ResultRecord, record), entries=record)


def progress_from(record: Mapping[str, Any]) -> ProgressRecord:
    """Return the progress of a record that `wrong_progress` finds nothing wrong with."""
    values = _known(ProgressRecord, record)
    if "error" in values:
        values["error"] = ErrorRecord(**_known(ErrorRecord, values["error"]))
    return ProgressRecord(**{**values, "state": Stage(values.get("state"))})


def curve_from(record: Mapping[str, Any]) -> RateCurve:
    """Return the curve of a record that `wrong_curve` finds nothing wrong with."""
    return RateCurve(**_known(RateCurve, record))


def as_record(of: ErrorRecord | ProgressRecord | RateCurve) -> dict[str, Any]:
    """Return a record in the form of its file, without the fields that have their defaults."""
    empty = vars(type(of)())
    own = {name: value for name, value in vars(of).items() if value != empty[name]}
    return {name: as_record(value) if isinstance(value, ErrorRecord) else value for name, value in own.items()}


def _known(record_type: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    names = checks_of(record_type)
    return {name: value for name, value in record.items() if name in names}


def wrong_progress(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `progress.json`; empty if nothing is."""
    return wrong(record, ["started"] if "updated" in record else [], checks_of(ProgressRecord))


def wrong_result(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `result.json`; empty if nothing is."""
    return wrong(record, [], checks_of(ResultRecord))


def wrong_pulled(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `pulled.json`; empty if nothing is."""
    return wrong(record, [], {"from": is_text, "runs_folder": is_text, "time": is_moment})


def wrong_curve(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a learning-rate finder's `lr_find_NAME.json`; empty if nothing is."""
    fields = checks_of(RateCurve)
    if why := wrong(record, tuple(fields), fields):
        return why
    return "" if len(record["learning_rates"]) == len(record["losses"]) else "losses=?"


def wrong_state(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a search's `state.json`; empty if nothing is."""
    lease = record_of(("worker", "retry"), worker=is_text, retry=is_count)
    objective = record_of(("name", "direction"), name=is_text, direction=is_text)
    texts: dict[str, Check] = {"failed": is_text, "identity": is_text, "format": lambda value: value == 1}
    fields = {**texts, "trials": map_of(_trial), "open": map_of(lease), "objective": objective}
    if why := wrong(record, ("format", "trials", "open", "failed"), fields):
        return why
    named = [name for name, trial in record["trials"].items() if not is_plain(name) or trial["trial_id"] != name]
    if named or not all(map(is_plain, record["open"])):
        return f"trials={named[:1]}"
    return "objective=?" if record["trials"] and "objective" not in record else ""


def _trial(value: Any) -> bool:
    parts = {"trial_id": is_text, "status": is_text, "score": or_none(is_number), "message": or_none(is_text)}
    if not record_of((*parts, "hyperparameters"), hyperparameters=record_of(("values",), values=_values), **parts)(
        value
    ):
        return False
    return value["status"] != "COMPLETED" or value["score"] is not None


def _values(value: Any) -> bool:
    books = dict.fromkeys(("tuner/bracket", "tuner/round", "tuner/epochs", "tuner/initial_epoch"), is_count)
    required = ("tuner/round", "tuner/epochs") if isinstance(value, dict) and "tuner/bracket" in value else ()
    return map_of(is_scalar)(value) and not wrong(value, required, {**books, "tuner/trial_id": is_plain})
