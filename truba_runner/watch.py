"""A run as it goes, for someone at a terminal: the lines of its log, and a progress bar below them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from truba_runner import damage, safe_files
from truba_runner.language import _
from truba_runner.progress import format_metrics
from truba_runner.rundir import RunDir
from truba_runner.state import last_job_id, progress_of
from truba_runner.sweeps.record import task_log

_LOOK_EVERY_SECONDS = 0.2


def latest_log(run: RunDir) -> Path | None:
    """The log that was written to last; of an array task that came to no run, the task's own."""
    names = (name for name in safe_files.names(run.logs, run.logs.parent) if name.endswith("_log.out"))
    logs = [run.logs / name for name in names if safe_files.is_file(run.logs / name)]
    newest = max(logs, key=_written, default=None)
    job_id = "" if damage.of_run(run) else last_job_id(run)
    if newest is not None and newest.name.startswith(f"{job_id}_"):
        return newest
    return task_log(run, job_id) or newest


def _written(path: Path) -> float:
    """When; of one that is gone meanwhile, long ago."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def opened(log: Path) -> TextIO:
    """A log, to be read as text; no link is followed.

    Raises:
        OSError: it cannot be read.
    """
    return open(safe_files.opened(log, log.parent.parent), encoding="utf-8", errors="replace")


def follow(run: RunDir, log: Callable[[], Path | None], ended: Callable[[], bool]) -> None:
    """Prints a log as it grows, until `ended`; on a terminal with a progress bar, else in plain lines.

    `log` says where the log is, once there is one.
    """
    show = _Screen(run) if sys.stdout.isatty() else _Plain()
    position = 0
    with show:
        while True:
            last_look = ended()
            if (path := log()) is not None:
                with open(safe_files.opened(path, path.parent.parent), "rb") as file:
                    file.seek(position)
                    text = file.read()
                position += len(text)
                show.lines(text.decode(errors="replace"))
            show.refresh()
            if last_look:
                return
            time.sleep(_LOOK_EVERY_SECONDS)


class _Plain:
    """For a file or a pipe."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass

    def lines(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def refresh(self) -> None:
        pass


class _Screen(_Plain):
    """For a person: the bar is drawn from the run's progress record."""

    def __init__(self, run: RunDir) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._run = run
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True)
        self._task = self._bar.add_task(_("waiting"), total=None)
        self._partial = ""

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        sys.stdout.write(self._partial)

    def lines(self, text: str) -> None:
        whole, newline, self._partial = (self._partial + text).rpartition("\n")
        if newline:
            self._bar.console.out(whole, highlight=False)

    def refresh(self) -> None:
        progress = progress_of(self._run)
        if not {"epoch", "epochs", "step", "steps_per_epoch"} <= progress.keys():
            return
        per_epoch = progress["steps_per_epoch"]
        values = format_metrics(progress.get("metrics", {}))
        self._bar.update(
            self._task,
            description=f"epoch {progress['epoch']}/{progress['epochs']}  {values}",
            completed=(progress["epoch"] - 1) * per_epoch + progress["step"],
            total=progress["epochs"] * per_epoch,
        )
