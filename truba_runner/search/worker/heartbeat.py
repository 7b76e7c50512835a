"""Heartbeat of workers: each touches a file of its own from a thread, and watches the others' files.

A worker is dead if its file has not changed for `lease_seconds`. Each watcher measures this by counting its own looks:
clocks differ between nodes, and a watcher that was stopped, or whose file system hung, must not count that time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"
# Beats, and looks at the other workers, per `lease_seconds`.
_BEATS = 4


class Heartbeat:
    """Heartbeat of one worker, and its view of the others' heartbeats."""

    def __init__(self, own: Path, lease_seconds: float, each_beat: Callable[[], None] = lambda: None) -> None:
        """Take the worker's folder, `own`, and a function that the thread calls after each beat."""
        self._own, self._lease_seconds, self._each_beat = own, lease_seconds, each_beat
        # By worker: its file's mtime (ns), and the number of looks that have found it unchanged.
        self._seen: dict[str, tuple[int, int]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Start the thread."""
        (self._own / ALIVE).touch(mode=0o600)
        self._watch()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the thread."""
        self._stopped.set()
        self._thread.join()

    def dead(self) -> set[str]:
        """Return the names of workers whose file has not changed for `lease_seconds`."""
        return {name for name, (_, unchanged) in [*self._seen.items()] if unchanged >= _BEATS}

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._lease_seconds / _BEATS):
            # A short failure of the file system is no reason to end; a worker that is too late loses its lease.
            with suppress(OSError):
                os.utime(self._own / ALIVE)
                self._watch()
            self._each_beat()

    def _watch(self) -> None:
        for folder in self._own.parent.iterdir():
            known, unchanged = self._seen.get(folder.name, (None, 0))
            stamp = known
            with suppress(OSError):  # A missing file counts as unchanged.
                stamp = (folder / ALIVE).stat().st_mtime_ns
            if stamp is not None and folder.name != self._own.name:
                self._seen[folder.name] = stamp, unchanged + 1 if stamp == known else 0
