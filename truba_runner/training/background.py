"""One piece of work at a time beside the main thread."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable


class Background:
    """A thread for what the main thread need not wait for, such as writing a file."""

    def __init__(self) -> None:
        """Idle."""
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Starts `work` once what was started before has ended. What it raises is printed and stops nobody."""
        self.wait()
        # Not a daemon: a program that ends lets its last file be written.
        self._thread = threading.Thread(target=_guarded, args=(work,), name="background")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        traceback.print_exc()
