"""What is wrong with the records of a run or a sweep. Whoever shows many says it of the one, and shows the others.

Readers pass over what is no record (record_files.py); what is left may then tell a tale. So it is looked for first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.runs import record_files, record_shapes
from truba_runner.runs.run_directory import PULLED, RunDir, sweep_events_file
from truba_runner.storage import safe_files

# The word for a run of which nothing sure can be told.
DAMAGED = "DAMAGED"
_OBJECTS: Mapping[str, record_files.Wrong] = {
    "progress.json": record_shapes.wrong_progress,
    "result.json": record_shapes.wrong_result,
    "state.json": record_shapes.wrong_state,
    PULLED: record_shapes.wrong_pulled,
}
# Of a config, what stands far apart in it; and what its lists and mappings never come to.
_KEYS, _MOST_BRACKETS = (b"job:", b"data:", b"train:", b"checkpoint:", b"resources:", b"cluster:"), 1000
_OTHERS = ("submissions.jsonl", "history.csv")

# What tells whether a file is still the one that was looked at; None: there is none.
_Seen = tuple[int, int, int] | None


def of_run(run: RunDir) -> str:
    """What is wrong with a run, or a search: the first that is found, in words; empty where nothing is."""
    return of_records(run) or _of_config(run.config_file, _seen(run.config_file))


def of_records(run: RunDir) -> str:
    """The same, whatever its config is: of what is not told from that."""
    seen = tuple(_seen(run.path / name) for name in ("", *_OBJECTS, *_OTHERS))
    return _of_run(run.path, seen) or _of_sweeps(run)


def of_submissions(run: RunDir) -> str:
    """What is wrong with what is on record of a run's submissions alone."""
    return _first_wrong([partial(_events, run.submissions_file)]) or _of_sweeps(run)


def of_sweep(path: Path) -> str:
    """The same of a sweep, by its folder."""
    if not safe_files.is_folder(path):
        return _("{folder} is no folder", folder=path.name)
    looks = [partial(record_files.read_object, path / "sweep.json", record_shapes.wrong_sweep)]
    return _first_wrong(looks) or _of_events(path / "submissions.jsonl")


def told(run: RunDir) -> str:
    """What is wrong with a run, as a line about it; empty where nothing is."""
    why = of_listed(run)
    return f"{run.id}: {DAMAGED}: {why}" if why else ""


def of_listed(run: RunDir) -> str:
    """The same of a run that was there a moment ago."""
    return of_run(run) if os.path.lexists(run.path) else _("it is not there any more")


def sound(runs: Iterable[RunDir]) -> list[RunDir]:
    """The runs that nothing is wrong with."""
    return [run for run in runs if not of_listed(run)]


def submissions(run: RunDir) -> list[dict[str, Any]]:
    """A run's events as far as they can be read."""
    try:
        return run.submissions()
    except OSError:
        return []


def _of_sweeps(run: RunDir) -> str:
    """What is wrong with the records of those submissions that a run shares with others."""
    own, _wrong = record_files.events(run.submissions_file)
    named = dict.fromkeys(event["sweep"] for event in own if event["event"] == "intent" and "sweep" in event)
    files = (sweep_events_file(run.path.parent, sweep) for sweep in named)
    return next(filter(None, map(_of_events, files)), "")


def _seen(path: Path) -> _Seen:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size


@lru_cache(maxsize=8192)
def _of_run(path: Path, seen: tuple[_Seen, ...]) -> str:
    if not path.is_dir():
        # Of a sweep a run that has not begun has no folder yet.
        return _("{folder} is no folder", folder=path.name) if os.path.lexists(path) else ""
    return _first_wrong(_looks(path))


def _looks(path: Path) -> Iterator[Callable[[], object]]:
    """What reads each record of a run, and raises where something is wrong with it."""
    yield partial(_events, path / "submissions.jsonl")
    for name, wrong in _OBJECTS.items():
        yield partial(record_files.read_object, path / name, wrong)
    yield partial(record_files.history, path / "history.csv")
    for name in safe_files.names(path, path):
        if name.startswith("lr_find_") and name.endswith(".json"):
            yield partial(record_files.read_object, path / name, record_shapes.wrong_curve)
    for name in safe_files.names(path / "workers", path):
        yield partial(_events, path / "workers" / name / "submissions.jsonl")


def _events(file: Path) -> None:
    found, why = record_files.events(file)
    if why:
        raise record_files.Damaged(why)
    for event in found:
        finder = event.get("finder", "")
        if finder and not record_shapes.is_plain(finder):
            what = f"finder={finder!r}"
            raise record_files.Damaged(_("{file} holds {what}", file=file.name, what=what))


def _config(file: Path) -> None:
    """Whether it is one. To parse it takes milliseconds, and is left out where its parts are all there."""
    try:
        text = safe_files.read(file, file.parent)
    except FileNotFoundError:
        return
    whole = text.endswith(b"\n") and all(b"\n" + key in text for key in _KEYS) and text.count(b"[") < _MOST_BRACKETS
    if not whole:
        with suppress(FileNotFoundError):
            RunDir(file.parent).read_config()


@lru_cache(maxsize=8192)
def _of_config(file: Path, seen: _Seen) -> str:
    return _first_wrong([partial(_config, file)])


@lru_cache(maxsize=256)
def _of_events_once(file: Path, seen: _Seen) -> str:
    return _first_wrong([partial(_events, file)])


def _of_events(file: Path) -> str:
    """Of a sweep's record, which a thousand runs look into."""
    why = _of_events_once(file, _seen(file))
    return _("of its sweep {sweep}: {why}", sweep=file.parent.name, why=why) if why else ""


def _first_wrong(looks: Iterable[Callable[[], object]]) -> str:
    for look in looks:
        try:
            look()
        except ValueError as error:
            return str(error)
        except OSError as error:
            name = Path(error.filename).name if error.filename else "?"
            return _("{file} cannot be read ({why})", file=name, why=error.strerror or error)
    return ""
