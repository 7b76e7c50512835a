"""Check the types of records' fields, on which their readers rely. Pure.

A record that a full disk has cut short, or that another user has written, may hold anything: a string among numbers, a
path in place of a name. No reader relies on fields that are not listed here.
"""

from __future__ import annotations

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


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST)


def _finite(value: Any) -> bool:
    return _number(value) and math.isfinite(value)


def _moment(value: Any) -> bool:
    return _finite(value) and 0 <= value < _LAST_SECOND


def _job_id(value: Any) -> bool:
    return _text(value) and _JOB_ID.fullmatch(value) is not None


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool)) or _number(value)


def _name(value: Any) -> bool:
    return value == "" or is_plain(value)


def _position(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _map_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _record(required: Sequence[str] = (), **fields: Check) -> Check:
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


_METRICS = _map_of(_or_none(_number))


def _error(value: Any) -> bool:
    required = ("type", "message", *(("line", "code") if isinstance(value, dict) and "file" in value else ()))
    return _record(required, type=_text, message=_text, file=_text, line=_or_none(_count), code=_text)(value)


_EVENT = {
    "event": _text,
    "time": _moment,
    "job_id": _job_id,
    "token": _text,
    "job_name": _text,
    "host": _text,
    "pid": _count,
    "position": _position,
    "seconds": _finite,
    "steps_lost": _count,
    "steps_per_epoch": _or_none(_count),
    "learning_rate": _finite,
    "request": _record(account=_or_none(_text), partition=_or_none(_text)),
    "sbatch": _map_of(lambda value: True),
    "environment": _map_of(lambda value: True),
    "git": _record(commit=_text),
    "versions": _map_of(_or_none(_text)),
    "job_file": _text,
    "job_sha256": _text,
    "project": _text,
    "code": _record(("archive",), archive=_text, sha256=_text),
    "sweep": is_plain,
    "finder": _text,
    "canary": _name,
    "array_index": _count,
    "places": _count,
    "why": _text,
    "signal": _text,
    "message": _text,
    "tasks": _list_of(_list_of(is_plain)),
    "numbers": _list_of(_count),
}
# Fields that an event must have, by its kind.
_REQUIRED = {
    "intent": ("token",),
    "submitted": ("job_id",),
    "started": ("job_id",),
    "local": ("job_id",),
    "duplicate": ("job_id",),
    "restored": ("seconds",),
    "dropped": ("why",),
    "killed": ("signal",),
}


def wrong_event(event: Any) -> str:
    """Describe what is wrong with a line of an event file; empty if nothing is."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return "event=?"
    required = [*_REQUIRED.get(event["event"], ()), *(["array_index"] if _names_an_array(event) else [])]
    return wrong(event, required, _EVENT)


def with_nul(value: Any, name: str = "event") -> str:
    """Return the first field of an event with a NUL character, which no path or command argument may contain."""
    if isinstance(value, str):
        return f"{name}={value[:_SHOWN]!r}" if "\0" in value else ""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else ((name, one) for one in value)
    return next((why for key, one in parts if (why := with_nul(key, name) or with_nul(one, str(key)))), "")


def _names_an_array(event: Mapping[str, Any]) -> bool:
    return event["event"] == "intent" and "sweep" in event


def wrong_progress(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `progress.json`; empty if nothing is."""
    counts = dict.fromkeys(("epoch", "epochs", "step", "steps_per_epoch"), _or_none(_count))
    own = {"state": _text, "job_id": _job_id, "host": _text, "pid": _count, "trial": _text, "warning": _text}
    times = dict.fromkeys(("started", "updated"), _moment)
    fields = {**counts, **own, **times, "metrics": _METRICS, "error": _error}
    return wrong(record, ["started"] if "updated" in record else [], fields)


def wrong_result(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `result.json`; empty if nothing is."""
    texts = dict.fromkeys(("weights_sha256", "warning", "model"), _text)
    lists = dict.fromkeys(("notes", "devices"), _list_of(_text))
    more = {"versions": _map_of(_or_none(_text)), "data": _record(name=_text), "parameters": _count}
    return wrong(record, [], {**texts, **lists, **more, "metrics": _METRICS, "seconds_training": _or_none(_finite)})


def wrong_pulled(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `pulled.json`; empty if nothing is."""
    return wrong(record, [], {"from": _text, "runs_folder": _text, "time": _moment})


def wrong_curve(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a learning-rate finder's `lr_find_NAME.json`; empty if nothing is."""
    rates: Check = _list_of(lambda value: _finite(value) and value > 0)
    fields = {"suggestions": _map_of(_or_none(_finite)), "learning_rates": rates, "losses": _list_of(_or_none(_number))}
    if why := wrong(record, tuple(fields), fields):
        return why
    return "" if len(record["learning_rates"]) == len(record["losses"]) else "losses=?"


def wrong_sweep(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a `sweep.json`; empty if nothing is."""
    member = _record(("run", "values"), run=is_plain, values=_map_of(_scalar), finder=_name, takes=_text)
    ends: Check = lambda value: _text(value) and value in {"", "min", "max"}  # noqa: E731
    fields = {"runs": _list_of(member), "keys": _list_of(_text), "monitor": _text, "mode": ends}
    return wrong(record, ("runs",), fields) or _unknown_fields(record["runs"])


def _unknown_fields(runs: Sequence[Mapping[str, Any]]) -> str:
    unknown = {name for one in runs for name in one} - {"run", "values", "finder", "takes"}
    return f"runs={sorted(unknown)}" if unknown else ""


def wrong_state(record: Mapping[str, Any]) -> str:
    """Describe what is wrong with a search's `state.json`; empty if nothing is."""
    lease = _record(("worker", "retry"), worker=_text, retry=_count)
    objective = _record(("name", "direction"), name=_text, direction=_text)
    texts: dict[str, Check] = {"failed": _text, "identity": _text, "format": lambda value: value == 1}
    fields = {**texts, "trials": _map_of(_trial), "open": _map_of(lease), "objective": objective}
    if why := wrong(record, ("format", "trials", "open", "failed"), fields):
        return why
    named = [name for name, trial in record["trials"].items() if not is_plain(name) or trial["trial_id"] != name]
    if named or not all(map(is_plain, record["open"])):
        return f"trials={named[:1]}"
    return "objective=?" if record["trials"] and "objective" not in record else ""


def _trial(value: Any) -> bool:
    parts = {"trial_id": _text, "status": _text, "score": _or_none(_number), "message": _or_none(_text)}
    if not _record((*parts, "hyperparameters"), hyperparameters=_record(("values",), values=_values), **parts)(value):
        return False
    return value["status"] != "COMPLETED" or value["score"] is not None


def _values(value: Any) -> bool:
    books = dict.fromkeys(("tuner/bracket", "tuner/round", "tuner/epochs", "tuner/initial_epoch"), _count)
    required = ("tuner/round", "tuner/epochs") if isinstance(value, dict) and "tuner/bracket" in value else ()
    return _map_of(_scalar)(value) and not wrong(value, required, {**books, "tuner/trial_id": is_plain})


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
    return _reads_as_number(text) and _finite(float(text)) and 0 <= float(text) < _MOST
