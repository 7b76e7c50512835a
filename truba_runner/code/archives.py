"""Find the archives in a runs folder's `.code` that a run needs, and delete those that no run needs any more.

There are two kinds: snapshots (snapshot.py), needed as long as a run whose record names them exists; and the package
with the container wrapper (package.py), needed by a run's jobs until the run has its result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from truba_runner.runs.run_directory import CODE, RunDir
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.storage import folder_lock, safe_files

_SUBMITTED = re.compile(rb"\bcode-[0-9a-f]+\.tar\.gz")
_PACKAGE = re.compile(rb"\b(?:truba-[0-9a-f]+\.pyz|apptainer-[0-9a-f]+)")
_SWEEP = re.compile(rb'"sweep": "([^"/]+)"')
# Younger archives are kept: a submission writes its archive before its record (under the folder's lock, but not every
# file system has locks), and a job may still import code after its run has its result.
_YOUNG_SECONDS = 86_400.0


def of_run(run: RunDir) -> list[Path]:
    """Return a run's existing archives: its snapshot and, until it has a result, the package that its jobs import."""
    text = _texts(run.path.parent, [run.path])
    names = {*_SUBMITTED.findall(text), *([] if run.result() else _PACKAGE.findall(text))}
    return _there(run.path.parent, names)


def code_of(runs: Iterable[RunDir]) -> list[Path]:
    """Return the existing snapshots of these runs, sorted."""
    there = {
        path
        for run in runs
        for path in _there(run.path.parent, _SUBMITTED.findall(_texts(run.path.parent, [run.path])))
    }
    return sorted(there)


def found(run: RunDir, code: Mapping[str, Any]) -> dict[str, Any]:
    """Return a submission's `code` with the archive's present path; a copied run has it in its own runs folder."""
    archive = Path(code["archive"])
    beside = run.path.parent / CODE / archive.name
    return {**code, "archive": str(beside if beside.exists() and not archive.exists() else archive)}


def unneeded(runs_folder: Path, without: Collection[Path] = ()) -> list[Path]:
    """Return files in `.code`, older than a day, that no run needs. `without`: run directories about to be deleted."""
    now = time.time()
    old = [path for path in _files(runs_folder) if _is_old(path, now)]
    if not old:
        return []
    folders = [file.parent for file in runs_folder.glob("*/submissions.jsonl") if file.parent not in without]
    open_folders = [folder for folder in folders if not _has_been_over(folder, now)]
    needed = {*_SUBMITTED.findall(_texts(runs_folder, folders)), *_PACKAGE.findall(_texts(runs_folder, open_folders))}
    return [path for path in old if path.name.encode() not in needed]


def free(runs_folder: Path, chosen: Collection[Path]) -> None:
    """Delete the chosen files that are still not needed, under the lock that submissions take."""
    with folder_lock.lock(runs_folder):
        for path in set(unneeded(runs_folder)) & set(chosen):
            path.unlink(missing_ok=True)


def _files(runs_folder: Path) -> list[Path]:
    folder = runs_folder / CODE
    return [folder / name for name in safe_files.names(folder, runs_folder) if safe_files.is_file(folder / name)]


def _there(runs_folder: Path, names: Iterable[bytes]) -> list[Path]:
    paths = (runs_folder / CODE / name.decode() for name in sorted(set(names)))
    return [path for path in paths if safe_files.is_file(path) and safe_files.is_folder(path.parent)]


def _has_been_over(folder: Path, now: float) -> bool:
    """Whether a run or search has had its result for so long that its jobs have ended too."""
    return _is_old(folder / "result.json", now) and bool(RunDir(folder).result())


def _is_old(file: Path, now: float) -> bool:
    try:
        return now - file.stat().st_mtime > _YOUNG_SECONDS
    except FileNotFoundError:
        return False


def _texts(runs_folder: Path, folders: Iterable[Path]) -> bytes:
    """Return the raw records of runs and searches and of their sweeps; raw, as damaged lines count too."""
    files = [file for one in folders for file in (one / "submissions.jsonl", *one.glob("workers/*/submissions.jsonl"))]
    text = b"\n".join(map(_text, files))
    named = sorted({name.decode(errors="replace") for name in _SWEEP.findall(text)})
    sweeps = [SweepDir.of(runs_folder, name) for name in named]
    of_sweeps = [file for sweep in sweeps for file in (sweep.events_file, sweep.sweeper.submissions_file)]
    return b"\n".join([text, *map(_text, of_sweeps)])


def _text(file: Path) -> bytes:
    try:
        stat = file.lstat()
        return _read_once(file, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:  # Any other error must not make code look unneeded.
        return b""


@lru_cache(maxsize=64)
def _read_once(file: Path, mtime_ns: int, size: int) -> bytes:
    """Read a file, cached: a sweep's record is needed for each of its runs."""
    return safe_files.read(file, file.parent)
