"""Remember the user's runs folders, and find a run or sweep in them by prefix.

The folders are in `$XDG_STATE_HOME/truba_runner/runs_folders` (by default under ~/.local/state), one per line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from truba_runner.errors import Failed, Problem, Refused, listed, nearest
from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.runs.events import SWEEPS
from truba_runner.runs.record_shapes import is_plain
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.storage import private
from truba_runner.storage.user_state import state_folder


def _memory() -> Path:
    return state_folder() / "runs_folders"


def remember(runs_folder: Path) -> None:
    """Remember a runs folder. If the home is not writable, do nothing: `--runs` can name the folder."""
    if runs_folder in folders():
        return
    with suppress(OSError):
        _memory().parent.mkdir(parents=True, exist_ok=True)
        with _memory().open("a") as file:
            file.write(f"{runs_folder}\n")


def folders() -> list[Path]:
    """Return the remembered folders that still exist."""
    try:
        lines = _memory().read_text().splitlines()
    except OSError:
        return []
    return [Path(line) for line in dict.fromkeys(lines) if line and Path(line).is_dir()]


def runs(runs_folder: Path | None = None) -> list[RunDir]:
    """Return the runs of one folder, or of all remembered ones; the latest submitted last."""
    every = [runs_folder] if runs_folder else folders()
    return [RunDir(path.parent) for path in _by_age(every, "submissions.jsonl")]


def sweeps(runs_folder: Path | None = None) -> list[SweepDir]:
    """Return the sweeps of one runs folder, or of all remembered ones; the latest last."""
    every = [folder / SWEEPS for folder in ([runs_folder] if runs_folder else folders())]
    return [SweepDir(path.parent) for path in _by_age(every, "sweep.json")]


def _by_age(folders: Iterable[Path], file: str) -> list[Path]:
    """Return the files of this name in the direct subfolders of `folders`; the latest last."""
    found = [(age, Path(folder, name, file)) for folder in folders for age, name in _with_ages(folder, file)]
    return [path for _age, path in sorted(found, key=lambda one: one[0])]


def _with_ages(folder: Path, file: str) -> Iterator[tuple[float, str]]:
    """Yield modification time and subfolder name for each such file; no `Path`s, as there may be thousands."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or (entry.is_symlink() and not private.is_mine(Path(entry.path))):
            continue
        if (age := _age(entry.path, file)) is not None:
            yield age, entry.name


def _age(folder: str, file: str) -> float | None:
    """Return the modification time of a folder's file; None if there is no such file, or it is not accessible."""
    try:
        return os.lstat(f"{folder}/{file}").st_mtime
    except PermissionError:
        # List this user's own folder, so that a command reports it as unreadable; skip other users' folders.
        with suppress(OSError):
            if (about := os.stat(folder)).st_uid == os.geteuid():
                return about.st_mtime
    except OSError:
        pass
    return None


def _of_this_name(name: str, runs_folder: Path | None) -> list[RunDir]:
    """Return the runs of exactly this name, at most one per runs folder, without scanning thousands of others."""
    if not is_plain(name):
        return []
    paths = [folder / name for folder in ([runs_folder] if runs_folder else folders())]
    return [
        RunDir(path)
        for path in paths
        if _age(str(path), "submissions.jsonl") is not None and (not path.is_symlink() or private.is_mine(path))
    ]


def find_sweep(prefix: str, runs_folder: Path | None = None) -> SweepDir | None:
    """Return the one sweep whose id is `prefix`, or starts with it; None if there is none, or a run matches.

    Raises:
        truba_runner.errors.Refused: several sweeps match.
        truba_runner.errors.Failed: the sweep's records are damaged.
    """
    if _of_this_name(prefix, runs_folder):
        return None
    known = sweeps(runs_folder)
    matches = [sweep for sweep in known if sweep.id == prefix] or [
        sweep for sweep in known if sweep.id.startswith(prefix)
    ]
    if not matches or any(run.id.startswith(prefix) for run in runs(runs_folder)):
        return None
    if len(matches) > 1:
        found = ", ".join(str(sweep.path) for sweep in matches)
        if len({sweep.id for sweep in matches}) == len(matches):
            raise Refused(Problem(prefix, _("{count} sweeps start with it:", count=len(matches)), f"{found}."))
        rule = _("there are several such sweeps: {found}.", found=found)
        raise Refused(Problem(prefix, rule, _("Choose a folder with --runs FOLDER.")))
    if why := damage.of_sweep(matches[0].path):
        message = _("{sweep}: {why}, so its runs are unknown; name each run instead. Its folder: {folder}")
        raise Failed(message.format(sweep=matches[0].id, why=why, folder=matches[0].path))
    return matches[0]


def find(prefix: str, runs_folder: Path | None = None) -> RunDir:
    """Return the run whose id is `prefix`, or the only one whose id starts with it.

    Raises:
        truba_runner.errors.Refused: no run matches, or several do.
    """
    matches = _of_this_name(prefix, runs_folder)
    known = [] if matches else runs(runs_folder)
    matches = matches or [run for run in known if run.id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if len({run.id for run in matches}) < len(matches):
        found = ", ".join(str(run.path) for run in matches)
        rule = _("there are several such runs: {runs}.", runs=found)
        raise Refused(Problem(prefix, rule, _("Choose a folder with --runs FOLDER.")))
    if matches:
        rule = _("{count} runs start with it:", count=len(matches))
        raise Refused(Problem(prefix, rule, f"{listed([run.id for run in matches])}."))
    every = [sweep.id for sweep in sweeps(runs_folder)]
    if meant := [name for name in every if name.startswith(prefix)]:
        remedy = _("truba status {sweep} lists its runs; --best METRIC lists the best first.", sweep=meant[0])
        raise Refused(Problem(prefix, _("it is a sweep, but this needs a single run."), remedy))
    raise Refused(Problem(prefix, _("no run starts with it."), nearest(prefix, [*every, *(run.id for run in known)])))
