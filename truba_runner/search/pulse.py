"""Which workers live: each touches a file of its own from a thread, and watches the others'.

A file that has not changed for a lease's time is a dead worker's. The time is the watcher's own: clocks differ.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"


class Pulse:
    """One worker's sign of life, and what it sees of the others."""

    def __init__(self, own: Path, lease_seconds: float, each_beat: Callable[[], None] = lambda: None) -> None:
        """`own` is the worker's folder; `each_beat` is called in the thread, after each beat."""
        self._own, self._lease_seconds, self._each_beat = own, lease_seconds, each_beat
        self._seen: dict[str, tuple[int, float]] = {}
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
        now = time.monotonic()
        return {name for name, (_, since) in [*self._seen.items()] if now - since > self._lease_seconds}

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._lease_seconds / 4):
            # A file system that hangs for a moment is no reason to end; whoever is too late has lost the lease.
            with suppress(OSError):
                os.utime(self._own / ALIVE)
                self._watch()
            self._each_beat()

    def _watch(self) -> None:
        for folder in self._own.parent.iterdir():
            with suppress(OSError):
                stamp = (folder / ALIVE).stat().st_mtime_ns
                if folder.name != self._own.name and self._seen.get(folder.name, (-1, 0.0))[0] != stamp:
                    self._seen[folder.name] = stamp, time.monotonic()
