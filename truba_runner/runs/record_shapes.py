"""Check the types of records' fields, on which their readers rely. Pure.

A record that a full disk has cut short, or that another user has written, may hold anything: a string among numbers, a
path in place of a name. No reader relies on fields that are not listed here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Check = Callable[[Any], bool]

# Larger numbers would overflow in C code and time functions.
_MOST = 2**53
# In the year 9987: Python's dates end with 9999.
_LAST_SECOND = 253_000_000_000.0
# Slurm's job id, `JOB_TASK` in an array, `JOB.LEASE` for a trial; or an id of our own, such as local-20261130-1200-77.
_JOB_ID = re.compile(r"(\d{1,10}(_\d{1,10})?(\.\d{1,18})?|[A-Za-z][\w.-]*)?")
_SHOWN = 60
_PLAIN = re.compile(r"[^/\0]{1,255}")


def is_plain(name: Any) -> bool:
    """Whether `name` is a plain file name, as runs, sweeps and trials have: no path, not hidden."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and not name.startswith(".")


def is_text(value: Any) -> bool:
    """Whether `value` is a string."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of 0 or more that C code can hold."""
    return type(value) is int and 0 <= value < _MOST


def is_number(value: Any) -> bool:
    """Whether `value` is a number, NaN and infinity included."""
    return type(value) is float or (type(value) is int and abs(value) < _MOST)


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
            return f"{name}={text[:_SHOWN]}" + ("…" if len(text) > _SHOWN else "")
    return ""


def checked(check: Check, default: Any) -> Any:
    """Return a dataclass field with the check of its value in JSON; `default`: its value if a record lacks it."""
    metadata = {"check": check}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def checks_of(record: type[Any]) -> dict[str, Check]:
    """Return the checks of a dataclass' fields, by name."""
    return {one.name: one.metadata["check"] for one in dataclasses.fields(record) if "check" in one.metadata}


_METRICS = map_of(or_none(is_number))


def _error(value: Any) -> bool:
    required = ("type", "message", *(("line", "code") if isinstance(value, dict) and "file" in value else ()))
    return record_of(required, type=is_text, message=is_text, file=is_text, line=or_none(is_count), code=is_text)(value)


def with_nul(value: Any, name: str = "event") -> str:
    """Return the first field of an event with a NUL character, which no path or command argument may contain."""
    if isinstance(value, str):
        return f"{name}={value[:_SHOWN]!r}" if "\0" in value else ""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else ((name, one) for one in value)
    return next((why for key, one in parts if (why := with_nul(key, name) or with_nul(one, str(key)))), "")


def wrong_progress(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `progress.json`; empty if nothing is."""
    counts = dict.fromkeys(("epoch", "epochs", "step", "steps_per_epoch"), or_none(is_count))
    own = {
        "state": is_text,
        "job_id": is_job_id,
        "host": is_text,
        "pid": is_count,
        "trial": is_text,
        "warning": is_text,
    }
    times = dict.fromkeys(("started", "updated"), is_moment)
    fields = {**counts, **own, **times, "metrics": _METRICS, "error": _error}
    return wrong(record, ["started"] if "updated" in record else [], fields)


def wrong_result(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `result.json`; empty if nothing is."""
    texts = dict.fromkeys(("weights_sha256", "warning", "model"), is_text)
    lists = dict.fromkeys(("notes", "devices"), list_of(is_text))
    more = {"versions": map_of(or_none(is_text)), "data": record_of(name=is_text), "parameters": is_count}
    return wrong(record, [], {**texts, **lists, **more, "metrics": _METRICS, "seconds_training": or_none(is_finite)})


def wrong_pulled(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `pulled.json`; empty if nothing is."""
    return wrong(record, [], {"from": is_text, "runs_folder": is_text, "time": is_moment})


def wrong_curve(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a learning-rate finder's `lr_find_NAME.json`; empty if nothing is."""
    rates: Check = list_of(lambda value: is_finite(value) and value > 0)
    fields = {"suggestions": map_of(or_none(is_finite)), "learning_rates": rates, "losses": list_of(or_none(is_number))}
    if why := wrong(record, tuple(fields), fields):
        return why
    return "" if len(record["learning_rates"]) == len(record["losses"]) else "losses=?"


def wrong_sweep(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `sweep.json`; empty if nothing is."""
    member = record_of(("run", "values"), run=is_plain, values=map_of(is_scalar), finder=is_name, takes=is_text)
    ends: Check = lambda value: is_text(value) and value in {"", "min", "max"}  # noqa: E731
    fields = {"runs": list_of(member), "keys": list_of(is_text), "monitor": is_text, "mode": ends}
    return wrong(record, ("runs",), fields) or _unknown_fields(record["runs"])


def _unknown_fields(runs: Sequence[Mapping[str, Any]]) -> str:
    unknown = {name for one in runs for name in one} - {"run", "values", "finder", "takes"}
    return f"runs={sorted(unknown)}" if unknown else ""


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


def wrong_history(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Describe what is wrong with a `history.csv`, whose values are strings: empty, a number, or a stage's name."""
    for row in rows:
        for name, value in row.items():
            if name is None or value is None or (value and name != "stage" and not _reads_as_number(value)):
                return f"{name}={str(value)[:_SHOWN]}"
        if not _is_epoch(row.get("epoch", "")):
            return f"epoch={str(row.get('epoch', '?'))[:_SHOWN]}"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_epoch(text: str) -> bool:
    return _reads_as_number(text) and is_finite(float(text)) and 0 <= float(text) < _MOST
