"""Helpers to start small runs, each in a fork of a process that has already imported its framework."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing.util
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from truba_runner.errors import Failed
from truba_runner.runs import checkpoints
from truba_runner.training.interrupt import Interrupted, Interruption

INTERRUPTED = 75
_EXIT_SECONDS = 60
# The kill may come late: the run continues for this many checks and then sleeps.
_LOOKS_UNTIL_KILL, _HELD_SECONDS = 3, 600


class StopAt(Interruption):
    """Counts a run's checks for interruptions; check number `look` brings a signal or awaits a kill from outside."""

    def __init__(self, name: str | None, look: int, reached: Path, awaits_kill: bool = False) -> None:
        super().__init__()
        self.reached = reached
        self.looks = 0
        self.name, self.look = name, look
        self.awaits_kill = awaits_kill

    def count(self, send: Callable[[str], None]) -> None:
        """Count a check; at number `look`, create the file `reached` and send the signal, if any."""
        self.looks += 1
        if self.looks == self.look:
            self.reached.touch()
            if self.name:
                send(self.name)
        if self.awaits_kill and self.looks == self.look + _LOOKS_UNTIL_KILL:
            time.sleep(_HELD_SECONDS)


def in_child(
    log: Path, train: Callable[[], None], slow_save: float, held_save: int = 0, reached: Path | None = None
) -> NoReturn:
    """Train in this fork with output to `log`, then exit with 0, INTERRUPTED, or 1 after an exception.

    Saves take up to `slow_save` seconds; number `held_save` creates `reached` when half written and waits for a kill.
    """
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if slow_save or held_save:
        _slow_down(slow_save, held_save, reached)
    status = 1
    try:
        train()
        status = 0
    except Interrupted:
        status = INTERRUPTED
    except Failed as error:
        print(f"Failed: {error}", flush=True)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Clean up as at any interpreter's exit, which waits for remaining processes, but not forever.
    signal.alarm(_EXIT_SECONDS)
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    os._exit(status)


def has_ended(child: int) -> bool:
    """Return whether a child has exited; its status remains for waitpid."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def small_disk(folder: Path, kilobytes: int) -> None:
    """Mount a small tmpfs at `folder` that only this process sees and that vanishes with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, recursive, new_mounts = 1 << 18, 1 << 14, 0x20000
    folder.mkdir(exist_ok=True)
    assert libc.unshare(new_mounts) == 0
    assert libc.mount(b"none", b"/", None, recursive | private, None) == 0
    assert libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={kilobytes}k".encode()) == 0


def _slow_down(seconds: float, held_save: int, reached: Path | None) -> None:
    """Make every checkpoint stay half written for a while, so that kills hit it."""
    saves = itertools.count(1)
    # A separate generator: the run's own random numbers are compared.
    dice = random.Random()
    write_whole = checkpoints._write_whole

    def slowly(path: Path, write: Any) -> None:
        def halting(file: IO[bytes]) -> None:
            write(file)
            file.flush()
            if reached and next(saves) == held_save:
                reached.touch()
                time.sleep(_HELD_SECONDS)
            time.sleep(dice.random() * seconds)

        write_whole(path, halting)

    checkpoints._write_whole = slowly
