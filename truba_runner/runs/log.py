"""Find, print and follow a run's log; on a terminal, with a progress bar below it."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from truba_runner import terminal
from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.runs.progress import format_metrics
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import last_job_id, progress_of
from truba_runner.runs.sweep_directory import task_log
from truba_runner.storage import safe_files

_LOOK_EVERY_SECONDS = 0.2
_PART_BYTES = 65_536


def latest_log(run: RunDir) -> Path | None:
    """Return the run's newest log; the array task's own log if the run's last job has written none."""
    names = (name for name in safe_files.names(run.logs, run.logs.parent) if name.endswith("_log.out"))
    logs = [run.logs / name for name in names if safe_files.is_file(run.logs / name)]
    newest = max(logs, key=_written, default=None)
    job_id = "" if damage.of_run(run) else last_job_id(run)
    if newest is not None and newest.name.startswith(f"{job_id}_"):
        return newest
    return task_log(run, job_id) or newest


def _written(path: Path) -> float:
    """Return the modification time; 0 if the file has vanished."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


class Growing:
    """Reader of a growing log, in parts of 64 KiB; a carriage return ends a line too."""

    def __init__(self) -> None:
        """Start at the beginning of the log."""
        self._path: Path | None = None
        self._position = 0
        self._decoder = _decoder()

    def parts(self, path: Path) -> Iterator[str]:
        """Yield text added since the last call, or all if the path is new or the file has shrunk; follow no link.
        Raises:
            OSError: the log cannot be read.
        """
        with open(safe_files.opened(path, path.parent.parent), "rb") as file:
            if path != self._path or file.seek(0, os.SEEK_END) < self._position:
                self._path, self._position, self._decoder = path, 0, _decoder()
            file.seek(self._position)
            while content := file.read(_PART_BYTES):
                self._position += len(content)
                yield self._decoder.decode(content)

    def end(self) -> str:
        """Return the text of an incomplete character or line end that the decoder still holds."""
        return self._decoder.decode(b"", final=True)


def _decoder() -> io.IncrementalNewlineDecoder:
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)


def show(path: Path) -> None:
    """Print a log up to its current end."""
    log = Growing()
    for part in log.parts(path):
        sys.stdout.write(part)
    sys.stdout.write(log.end())


def follow(run: RunDir, log: Callable[[], Path | None], ended: Callable[[], bool]) -> None:
    """Print a log as it grows, until `ended()` is true; with a progress bar on a terminal, else in plain lines.

    `log` returns the path of the log, or None while there is none.
    """
    screen = _Screen(run) if sys.stdout.isatty() else _Plain()
    growing = Growing()
    with screen:
        while True:
            last_look = ended()
            if (path := log()) is not None:
                for part in growing.parts(path):
                    screen.lines(part)
            screen.refresh()
            if last_look:
                screen.lines(growing.end())
                return
            time.sleep(_LOOK_EVERY_SECONDS)


class _Plain:
    """Output to a file or a pipe."""

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
    """Output to a terminal: log lines above a progress bar that shows the run's progress record."""

    def __init__(self, run: RunDir) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._run = run
        about = TextColumn("{task.description}", markup=False)
        columns = (about, BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        console = terminal.console()
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True, console=console)
        self._task = self._bar.add_task(_("waiting"), total=None)
        self._partial = ""
        self._is_drawn = False

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        sys.stdout.write(self._partial)

    def lines(self, text: str) -> None:
        whole, newline, self._partial = (self._partial + text).rpartition("\n")
        if newline:
            self._print(whole)
        if len(self._partial) > _PART_BYTES:
            self._print(self._partial)
            self._partial = ""

    def _print(self, text: str) -> None:
        if self._is_drawn:
            self._bar.console.out(terminal.shown(text), highlight=False)
        else:  # Rich would take twenty minutes for an existing log of a gigabyte.
            sys.stdout.write(f"{text}\n")

    def refresh(self) -> None:
        if not self._is_drawn:
            sys.stdout.flush()
            self._bar.start()
            self._is_drawn = True
        progress = progress_of(self._run)
        epoch, epochs, per_epoch = progress.epoch, progress.epochs, progress.steps_per_epoch
        if epoch is None or epochs is None or per_epoch is None or progress.step is None:
            return
        values = format_metrics(progress.metrics)
        self._bar.update(
            self._task,
            description=terminal.shown(f"epoch {epoch}/{epochs}  {values}"),
            completed=(epoch - 1) * per_epoch + progress.step,
            total=epochs * per_epoch,
        )
