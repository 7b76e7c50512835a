"""The file of a lock, and waiting for one that another holds: soon it is said who that is, and the wait ends."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.storage import private, safe_files

# What waits for longer says for whom.
SAY_AFTER_SECONDS = 2.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1
# Of a record, at the most: what else a file of this name holds is none.
_RECORD_BYTES = 1000


def this_process() -> dict[str, Any]:
    """Who holds a lock, for the others: what stands in its file."""
    # Containers number their processes each for itself.
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return {"host": socket.gethostname(), "pid": os.getpid(), "namespace": namespace, "time": time.time()}


def opened(path: Path) -> int:
    """A descriptor of the file of a lock, which is made where it is missing.

    Its holder's name will stand in it in place of what it holds. So it is no link, and no second name of a file.

    Raises:
        Refused: it is another's, who could let two commands in at once.
        Failed: it is no file, or another file too.
        OSError: it cannot be made.
    """
    private.require_own(path)
    if os.path.lexists(path) and not (safe_files.is_file(path) and path.lstat().st_nlink == 1):
        raise Failed(_not_a_lock(path))
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and about.st_nlink <= 1:
        with suppress(OSError):  # Who may open it may hold it.
            os.fchmod(handle, 0o600)
        return handle
    os.close(handle)
    raise Failed(_not_a_lock(path))


def _not_a_lock(path: Path) -> str:
    told = _("{path}: a lock has this name, and what is there is a link, no file, or a second name of another file. "
             "Take it away.", path=path)  # fmt: skip
    return told


def sign(handle: int) -> None:
    """Writes into the open file of a lock who holds it; where the disk is full, that nobody knows."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(this_process()).encode(), 0)


def is_dead(record: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    holder, here = _read(record), this_process()
    if (holder.get("host"), holder.get("namespace")) != (here["host"], here["namespace"]):
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return False


def wait_for(attempt: Callable[[], bool], seconds: float, path: Path) -> None:
    """Tries until the lock `path` is held; its file says who holds it meanwhile.

    Raises:
        Failed: it was not within `seconds`.
    """
    began, pause, told = time.monotonic(), _SHORTEST_PAUSE_SECONDS, False
    while not attempt():
        waited = time.monotonic() - began
        if waited > seconds:
            raise Failed(
                _(
                    "{path} was not free within {seconds:.0f} s: it is held by {holder}. The same "
                    "command works once that has ended; a process that is stuck may be killed.",
                    path=path,
                    seconds=seconds,
                    holder=_holder(path),
                )
            )
        if waited > SAY_AFTER_SECONDS and not told:
            told = True
            words = _("waiting for {path}, which is held by {holder}", path=path, holder=_holder(path))
            print(words, file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    record = b""
    with suppress(OSError), open(safe_files.opened(path, path.parent), "rb") as file:
        record = file.read(_RECORD_BYTES)
    holder = _read(record)
    if "pid" not in holder:
        return _("another process, which has left no name")
    since = "?"
    with suppress(ValueError, TypeError, KeyError, OverflowError, OSError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder["time"])))
    names = {"pid": holder["pid"], "host": holder.get("host", "?"), "since": since}
    if is_dead(record):
        return _("a command that process {pid} on {host} has started, and that lives on, since {since}", **names)
    return _("process {pid} on {host} since {since}", **names)


def _read(record: bytes) -> dict[str, Any]:
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
