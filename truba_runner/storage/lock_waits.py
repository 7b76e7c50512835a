"""Open lock files, and wait for a lock with a time limit, reporting who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.storage import private, safe_files

# A wait longer than this prints who holds the lock.
SAY_AFTER_SECONDS = 2.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1
# No holder's record is longer; a file of this name may hold anything.
_RECORD_BYTES = 1000


def this_process() -> dict[str, Any]:
    """Return the record of this process that is written to the file of a lock it holds."""
    # Each container numbers its processes separately.
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return {"host": socket.gethostname(), "pid": os.getpid(), "namespace": namespace, "time": time.time()}


def opened(path: Path) -> int:
    """Open the file of a lock, creating it if missing, and return its descriptor.

    The holder's record will overwrite its content, so it must not be a symbolic or hard link to another file.

    Raises:
        truba_runner.errors.Refused: it is another user's, who could let two commands in at once.
        truba_runner.errors.Failed: it is not a regular file, or a link to another file.
        OSError: it cannot be opened or created.
    """
    private.require_own(path)
    if os.path.lexists(path) and not (safe_files.is_file(path) and path.lstat().st_nlink == 1):
        raise Failed(_not_a_lock(path))
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and about.st_nlink <= 1:
        with suppress(OSError):  # Whoever can open the file can hold the lock.
            os.fchmod(handle, 0o600)
        return handle
    os.close(handle)
    raise Failed(_not_a_lock(path))


def _not_a_lock(path: Path) -> str:
    return _("{path} should be a lock file, but it is a link, not a regular file, or a second name of another file. "
             "Remove it.", path=path)  # fmt: skip


def sign(handle: int) -> None:
    """Write this process' record to the open file of a lock; on a full disk the file stays empty."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(this_process()).encode(), 0)


def is_dead(record: bytes) -> bool:
    """Whether the holder in a lock's record was a process of this machine that has ended."""
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
    """Call `attempt` until it succeeds in taking the lock `path`, whose file names the current holder.

    Raises:
        truba_runner.errors.Failed: the lock was not taken within `seconds`.
    """
    began, pause, announced = time.monotonic(), _SHORTEST_PAUSE_SECONDS, False
    while not attempt():
        waited = time.monotonic() - began
        if waited > seconds:
            raise Failed(
                "The lock {path} was not released within {seconds:.0f} s. It is held by {holder}. Run the same command "
                "after that has ended; if it hangs, you can kill it.",
                path=path,
                seconds=seconds,
                holder=_holder(path),
            )
        if waited > SAY_AFTER_SECONDS and not announced:
            announced = True
            words = _("waiting for the lock {path}, which is held by {holder}", path=path, holder=_holder(path))
            print(words, file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@contextmanager
def holding(path: Path, lock: Callable[[int, int], object], seconds: float) -> Iterator[int]:
    """Take a kernel lock, `fcntl.flock` or `fcntl.lockf`, on a file, and yield the file's descriptor.

    Raises:
        truba_runner.errors.Failed: the lock was not taken within `seconds`.
    """
    handle = opened(path)

    def taken() -> bool:
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # Which one depends on the file system.
            return False
        return True

    try:
        wait_for(taken, seconds, path)
        sign(handle)
        yield handle
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    """Describe who holds a lock."""
    record = b""
    with suppress(OSError), open(safe_files.opened(path, path.parent), "rb") as file:
        record = file.read(_RECORD_BYTES)
    holder = _read(record)
    if "pid" not in holder:
        return _("another process, which did not record its name")
    since = "?"
    with suppress(ValueError, TypeError, KeyError, OverflowError, OSError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder["time"])))
    names = {"pid": holder["pid"], "host": holder.get("host", "?"), "since": since}
    if is_dead(record):
        return _("a command that process {pid} on {host} started and that is still running, since {since}", **names)
    return _("process {pid} on {host} since {since}", **names)


def _read(record: bytes) -> dict[str, Any]:
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
