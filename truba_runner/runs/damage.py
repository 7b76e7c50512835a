"""Find damaged records of a run or a sweep, so that a command can report that run and still show the others.

Commands check this first: readers skip invalid records (record_files.py), and the remaining ones alone could mislead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from truba_runner.language import _
from truba_runner.runs import events, record_files, record_shapes
from truba_runner.runs.events import Event, sweep_events_file
from truba_runner.runs.record_files import PULLED, RunRecord
from truba_runner.runs.record_shapes import Damaged
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import wrong_sweep
from truba_runner.storage import safe_files

# State of a run whose records cannot be trusted.
DAMAGED = "DAMAGED"
_OBJECTS: Mapping[str, record_files.Wrong] = {
    "progress.json": record_shapes.wrong_progress,
    "result.json": record_shapes.wrong_result,
    "state.json": record_shapes.wrong_state,
    PULLED: record_shapes.wrong_pulled,
}
# Keys spread over a whole run.yaml, all there unless it was cut short; and more brackets than any config has.
_KEYS, _MOST_BRACKETS = (b"job:", b"data:", b"train:", b"checkpoint:", b"resources:", b"cluster:"), 1000
_OTHERS = ("submissions.jsonl", "history.csv")

# Inode, ctime (ns) and size of a file, by which a changed file is recognised; empty if there is no file.
_Seen = tuple[int, ...]


def of_run(run: RunDir) -> str:
    """Describe the first problem found in the records and config of a run or search; empty if there is none."""
    return of_records(run) or _of_config(run.config_file, _seen(run.config_file))


def of_record(record: RunRecord) -> str:
    """Describe the first problem in a run's records and config, read into `record`; empty if there is none."""
    if record.wrong is None:
        looks = [partial(_config, record.path / "run.yaml")]
        record.wrong = _of_folder(record) or _of_sweeps(record) or _first_wrong(looks)
    return record.wrong


def of_records(run: RunDir) -> str:
    """Describe the first problem in a run's records, ignoring its config; empty if there is none."""
    seen = tuple(_seen(run.path / name) for name in ("", *_OBJECTS, *_OTHERS))
    return _of_run(run.path, seen) or _of_sweeps(run.record())


def of_submissions(run: RunDir) -> str:
    """Describe the first problem in the records of a run's submissions alone; empty if there is none."""
    return _first_wrong([partial(_events, run.submissions_file)]) or _of_sweeps(run.record())


def of_sweep(path: Path) -> str:
    """Describe the first problem in the records of the sweep in this folder; empty if there is none."""
    if not safe_files.is_folder(path):
        return _("{folder} is not a folder", folder=path.name)
    looks = [partial(record_files.read_object, path, "sweep.json", wrong_sweep)]
    return _first_wrong(looks) or _of_events(path / "submissions.jsonl")


def described(run: RunDir) -> str:
    """Return a line that names a run and its first problem; empty if there is none."""
    why = of_listed(run)
    return f"{run.id}: {DAMAGED}: {why}" if why else ""


def of_listed(run: RunDir | RunRecord) -> str:
    """Like `of_run` and `of_record`, for a run that was just listed: that its folder has vanished is a problem too."""
    if not os.path.lexists(run.path):
        return _("it is not there any more")
    return of_record(run) if isinstance(run, RunRecord) else of_run(run)


def sound(runs: Iterable[RunDir]) -> list[RunDir]:
    """Return the undamaged runs."""
    return [run for run in runs if not of_listed(run)]


def submissions(run: RunDir) -> list[Event]:
    """Return a run's submission events; none if a file cannot be read."""
    try:
        return run.submissions()
    except OSError:
        return []


def _of_sweeps(record: RunRecord) -> str:
    """Describe the first problem in the event files of the sweeps that submitted this run."""
    named = dict.fromkeys(event.sweep for event in record.own_events[0] if event.sweep)
    files = (sweep_events_file(record.path.parent, sweep) for sweep in named)
    return next(filter(None, map(_of_events, files)), "")


def _seen(path: Path) -> _Seen:
    try:
        found = path.lstat()
    except OSError:
        return ()
    return found.st_ino, found.st_ctime_ns, found.st_size


@lru_cache(maxsize=8192)
def _of_run(path: Path, seen: tuple[_Seen, ...]) -> str:
    return _of_folder(RunRecord(path))


def _of_folder(record: RunRecord) -> str:
    if not record.path.is_dir():
        # A sweep's run has no folder before it begins.
        return _("{folder} is not a folder", folder=record.id) if os.path.lexists(record.path) else ""
    return _first_wrong(_looks(record))


def _looks(record: RunRecord) -> Iterator[Callable[[], object]]:
    """Yield a function for each record of a run that reads it, and raises if it is damaged."""
    names = record.names
    yield lambda: _check(*record.own_events, "submissions.jsonl")
    for name, wrong in _OBJECTS.items():
        yield partial(record.whole, name, wrong)
    yield lambda: record.history
    for name in sorted(names):
        if name.startswith("lr_find_") and name.endswith(".json"):
            yield partial(record.whole, name, record_shapes.wrong_curve)
    for name in safe_files.names(record.path / "workers", record.path) if "workers" in names else ():
        yield partial(_events, record.path / "workers" / name / "submissions.jsonl")


def _events(file: Path) -> None:
    _check(*events.examined(file), file.name)


def _check(found: Iterable[Event], why: str, name: str) -> None:
    """Raise if `why` says what is wrong with a file's events, or one that was found names a path as a finder."""
    if why:
        raise Damaged(why)
    for event in found:
        if event.finder and not record_shapes.is_plain(event.finder):
            what = f"finder={event.finder!r}"
            raise Damaged(_("{file} holds {what}", file=name, what=what))


def _config(file: Path) -> None:
    """Raise if the config is damaged. Parsing takes milliseconds, so it is skipped if the text looks complete."""
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
    """Describe the first problem in a sweep's event file; cached, as a thousand runs may share the file."""
    why = _of_events_once(file, _seen(file))
    return _("in its sweep {sweep}: {why}", sweep=file.parent.name, why=why) if why else ""


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
