"""A background thread that runs one function at a time, such as a checkpoint write."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable


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
