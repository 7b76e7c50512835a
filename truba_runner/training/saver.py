"""Save a training's checkpoints: when one is due, which epoch is the best, and the thread that writes them."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any

from truba_runner.config.schema import Checkpoint
from truba_runner.errors import nearest
from truba_runner.log import print_error
from truba_runner.runs.checkpoints import CheckpointStore, Position, is_better
from truba_runner.training.backend import Context


class Best:
    """The best value so far of `checkpoint.monitor`; None if there is none yet."""

    def __init__(self, settings: Checkpoint, value: float | None = None) -> None:
        """Begin with `value`, an earlier start's best."""
        self._monitor, self._mode, self.value = settings.monitor, settings.mode, value
        self._missed = False

    def improved_by(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether an epoch's metrics are the best so far, and remember their value."""
        value = metrics.get(self._monitor)
        if not is_better(value, self.value, self._mode):
            return False
        self.value = float(metrics[self._monitor])
        return True

    def print_if_missing(self, metrics: Mapping[str, Any]) -> None:
        """Print once if `checkpoint.monitor` is not among the metrics."""
        if self._monitor not in metrics and not self._missed:
            self._missed = True
            print_error(
                "checkpoint.monitor={monitor}: no such metric. {nearest}",
                monitor=self._monitor,
                nearest=nearest(self._monitor, metrics),
            )


class Saver:
    """The writer of a training's checkpoints, one at a time in the background."""

    def __init__(self, context: Context, settle: Callable[[], object]) -> None:
        """Start the clock of `checkpoint.every_minutes`. `settle` is called before each checkpoint."""
        self._minutes = context.experiment.checkpoint.every_minutes
        self.store = CheckpointStore(context.run.checkpoints, context.experiment.checkpoint.keep)
        self._settle, self.background = settle, Background()
        self._saved_at = time.monotonic()

    def time_is_up(self) -> bool:
        """Whether a checkpoint is due by the clock."""
        return self._minutes is not None and time.monotonic() - self._saved_at >= 60 * self._minutes

    def save(self, position: Position, write: Callable[[IO[bytes]], None] | None, best: bool) -> None:
        """Write a checkpoint with `write`; None on ranks that write none."""
        if write is not None:
            self.background.start(partial(self._save, position, write, best))
        self._saved_at = time.monotonic()

    def _save(self, position: Position, write: Callable[[IO[bytes]], None], best: bool) -> None:
        # A run that resumes from this checkpoint needs the event files at their present length.
        self._settle()
        self.store.save(position, write, best)

    def finish(self) -> None:
        """Wait for the last checkpoint at the training's end; write it again if that failed."""
        self.background.wait()
        self.store.retry()


class Background:
    """One background thread, for work that the main thread need not wait for."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Run `work` in the thread once the previous work has ended; exceptions are printed, not raised."""
        self.wait()
        # Not a daemon: the interpreter waits for the last write before it exits.
        self._thread = threading.Thread(target=_guarded, args=(work,), name="background")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether work is running."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until no work is running."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        traceback.print_exc()
