"""Where runs lie: the folders that this user has trained in, remembered so that no command has to ask.

One line a folder in `$XDG_STATE_HOME/truba_runner/runs_folders` (by default under ~/.local/state).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from truba_runner.errors import Failed, Problem, Refused, listed, nearest
from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.runs.record_shapes import is_plain
from truba_runner.runs.run_directory import SWEEPS, RunDir
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.storage import private
from truba_runner.storage.user_state import state_folder


def _memory() -> Path:
    return state_folder() / "runs_folders"


def remember(runs_folder: Path) -> None:
    """Notes a runs folder. A home that can't be written to costs no run: `--runs` names the folder."""
    if runs_folder in folders():
        return
    with suppress(OSError):
        _memory().parent.mkdir(parents=True, exist_ok=True)
        with _memory().open("a") as file:
            file.write(f"{runs_folder}\n")


def folders() -> list[Path]:
    """The remembered folders that are still there."""
    try:
        lines = _memory().read_text().splitlines()
    except OSError:
        return []
    return [Path(line) for line in dict.fromkeys(lines) if line and Path(line).is_dir()]


def runs(runs_folder: Path | None = None) -> list[RunDir]:
    """Every run, the latest submitted last; of one folder where it is given."""
    every = [runs_folder] if runs_folder else folders()
    return [RunDir(path.parent) for path in _by_age(every, "submissions.jsonl")]


def sweeps(runs_folder: Path | None = None) -> list[SweepDir]:
    """Every sweep, the latest last; of one folder where it is given."""
    every = [folder / SWEEPS for folder in ([runs_folder] if runs_folder else folders())]
    return [SweepDir(path.parent) for path in _by_age(every, "sweep.json")]


def _by_age(folders: Iterable[Path], file: str) -> list[Path]:
    """The files of this name, one in each folder that lies in `folders`; the latest last."""
    found = [(age, Path(folder, name, file)) for folder in folders for age, name in _with_ages(folder, file)]
    return [path for _age, path in sorted(found, key=lambda one: one[0])]


def _with_ages(folder: Path, file: str) -> Iterator[tuple[float, str]]:
    """The names of the folders that have such a file, with when it was written. For thousands, without a `Path`."""
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
    """When a folder's file was written; None: it is not there, or not to be known."""
    try:
        return os.lstat(f"{folder}/{file}").st_mtime
    except PermissionError:
        # Of this user's own it is to be said that it cannot be looked into; others' are nobody else's affair.
        with suppress(OSError):
            if (about := os.stat(folder)).st_uid == os.geteuid():
                return about.st_mtime
    except OSError:
        pass
    return None


def _of_this_name(name: str, runs_folder: Path | None) -> list[RunDir]:
    """The runs that are called so, one a folder: looking through thousands for them takes a while."""
    if not is_plain(name):
        return []
    paths = [folder / name for folder in ([runs_folder] if runs_folder else folders())]
    return [
        RunDir(path)
        for path in paths
        if _age(str(path), "submissions.jsonl") is not None and (not path.is_symlink() or private.is_mine(path))
    ]


def find_sweep(prefix: str, runs_folder: Path | None = None) -> SweepDir | None:
    """The one sweep whose id is `prefix`, or starts with it; None where there is none, or a run is meant.

    Raises:
        Refused: there is more than one.
        Failed: what is on record of it is damaged.
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
        told = _("{sweep}: {why}, so which its runs are is not known; each can be named. It lies in {folder}")
        raise Failed(told.format(sweep=matches[0].id, why=why, folder=matches[0].path))
    return matches[0]


def find(prefix: str, runs_folder: Path | None = None) -> RunDir:
    """The one run whose id is `prefix`, or starts with it and no other does.

    Raises:
        Refused: there is none, or more than one.
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
        remedy = _("truba status {sweep} lists its runs, with --best METRIC the best of them.", sweep=meant[0])
        raise Refused(Problem(prefix, _("it is a sweep, and one run is wanted."), remedy))
    raise Refused(Problem(prefix, _("no run starts with it."), nearest(prefix, [*every, *(run.id for run in known)])))
