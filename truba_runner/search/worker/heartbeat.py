"""Which workers live: each touches a file of its own from a thread, and watches the others'.

A file that has not changed for a lease's time is a dead worker's. The time is that of the watcher's own looks: clocks
differ, and of what happened while it stood still itself, or the file system did, it knows nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"
# Beats, and looks at the others, in a lease's time.
_BEATS = 4


class Pulse:
    """One worker's sign of life, and what it sees of the others."""

    def __init__(self, own: Path, lease_seconds: float, each_beat: Callable[[], None] = lambda: None) -> None:
        """`own` is the worker's folder; `each_beat` is called in the thread, after each beat."""
        self._own, self._lease_seconds, self._each_beat = own, lease_seconds, each_beat
        # Of each other worker: its file's time, and how many looks have found it unchanged.
        self._seen: dict[str, tuple[int, int]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        """Begins to beat."""
        (self._own / ALIVE).touch(mode=0o600)
        self._watch()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops."""
        self._stopped.set()
        self._thread.join()

    def dead(self) -> set[str]:
        """The workers whose sign of life has stood still for a lease's time."""
        return {name for name, (_, unchanged) in [*self._seen.items()] if unchanged >= _BEATS}

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._lease_seconds / _BEATS):
            # A file system that hangs for a moment is no reason to end; whoever is too late has lost the lease.
            with suppress(OSError):
                os.utime(self._own / ALIVE)
                self._watch()
            self._each_beat()

    def _watch(self) -> None:
        for folder in self._own.parent.iterdir():
            known, unchanged = self._seen.get(folder.name, (None, 0))
            stamp = known
            with suppress(OSError):  # One that is gone is as silent as one that stands still.
                stamp = (folder / ALIVE).stat().st_mtime_ns
            if stamp is not None and folder.name != self._own.name:
                self._seen[folder.name] = stamp, unchanged + 1 if stamp == known else 0
