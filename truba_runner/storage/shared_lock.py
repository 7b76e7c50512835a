"""Exclusive lock on a shared file system, of a kind that works there; it guards a search's state.

| kind | what it is | when its owner dies |
|---|---|---|
| fcntl | a kernel lock (`lockf`): on Lustre mounted with `flock`, on NFS with a lock service | free at once |
| file | a lock file, whose name only one process can create (`link`) | broken after `STALE_SECONDS` at most |
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from truba_runner.errors import Failed
from truba_runner.storage import lock_waits
from truba_runner.storage.files import write_atomically

KINDS = ("auto", "fcntl", "file")
# A waiting process breaks a lock file that it has seen unchanged for this long.
STALE_SECONDS = 60.0
# A transaction takes less than a second: a holder that lives, and has not finished after this time, is stuck.
WAIT_SECONDS = 600.0
# Mount options with which other nodes do not see a lock.
_LOCAL_ONLY = {"localflock", "nolock", "local_lock=all", "local_lock=posix"}


class Lock(Protocol):
    """A lock that `lock_for` returns: a context manager, to be checked with `held` before a write."""

    def __enter__(self) -> Lock:
        """Wait until the lock is held."""

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""

    def held(self) -> bool:
        """Whether this process still holds the lock: no other has broken it."""


def lock_for(folder: Path, wanted: str = "auto") -> Lock:
    """Return the lock of a search's folder; the first caller decides its kind for all later ones.

    Raises:
        OSError: the folder is not writable.
    """
    file = folder / "lock.kind"
    if not file.exists():
        _decide(file, wanted if wanted != "auto" else ("fcntl" if fcntl_works(folder) else "file"))
    return FcntlLock(folder / "lock") if _text(file) == "fcntl" else FileLock(folder / "lock.owner")


def check(folder: Path) -> None:
    """Check that the folder's kind of lock works on this machine too; to be called once per process.

    Raises:
        truba_runner.errors.Failed: the kind does not work here.
    """
    if _text(folder / "lock.kind") == "fcntl" and not fcntl_works(folder):
        raise Failed(
            "{folder} is locked with fcntl (see lock.kind in it), which does not work on {host}. Start the search in "
            "another folder with sweep.lock=file, or exclude this node.",
            folder=folder,
            host=socket.gethostname(),
        )


def _decide(file: Path, kind: str) -> None:
    """Write the kind, unless another process has in the meantime."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    write_atomically(beside, kind.encode())
    with suppress(FileExistsError):
        os.link(beside, file)
    beside.unlink()


# -- fcntl -----------------------------------------------------------------------------------------------------


class FcntlLock:
    """POSIX record lock on a whole file."""

    def __init__(self, path: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        """Use the file `path`, which is created if missing, and never removed."""
        self._path = path
        self._wait_seconds = wait_seconds
        self._holding: AbstractContextManager[int] = nullcontext(-1)

    def __enter__(self) -> FcntlLock:
        """Wait until the lock is held.

        Raises:
            truba_runner.errors.Failed: the lock was not free within `wait_seconds`.
        """
        self._holding = lock_waits.holding(self._path, fcntl.lockf, self._wait_seconds)
        self._holding.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        self._holding.__exit__(None, None, None)

    def held(self) -> bool:
        """Always True: the kernel breaks no lock."""
        return True


_PROBE = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", flush=True)
    sys.stdin.readline()
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
"""


def fcntl_works(folder: Path) -> bool:
    """Whether a lock keeps a second process out until it is released, and no mount option limits it to one node."""
    if _LOCAL_ONLY & set(mount_options(folder)):
        return False
    path = folder / f".probe.{secrets.token_hex(4)}"
    try:
        with FcntlLock(path, wait_seconds=1.0):
            other = subprocess.Popen(
                [sys.executable, "-S", "-c", _PROBE, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert other.stdout is not None  # noqa: S101
            kept_out = other.stdout.readline() == "refused\n"
        return other.communicate("free\n")[0] == "held\n" and kept_out
    except (OSError, Failed):  # Some file systems refuse every lock as if another process held it.
        return False
    finally:
        path.unlink(missing_ok=True)


def mount_options(folder: Path, table: Path = Path("/proc/self/mounts")) -> list[str]:
    """Return the type of a folder's file system, followed by its mount options."""
    found: tuple[int, list[str]] = (-1, [])
    with suppress(OSError):
        for line in table.read_text().splitlines():
            _, place, kind, options, *_ = line.split()
            place = place.replace("\\040", " ")
            if folder.resolve().is_relative_to(place) and len(place) >= found[0]:
                found = len(place), [kind, *options.split(",")]
    return found[1]


# -- lock file -------------------------------------------------------------------------------------------------


class FileLock:
    """Lock file that only one process can create, with its owner's record in it.

    A dead owner's file no longer changes, as measured by the waiting process' clock: clocks differ between machines.
    """

    def __init__(self, path: Path, stale_seconds: float = STALE_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        """Use the file `path`, which exists while the lock is held."""
        self._path = path
        self._stale_seconds = stale_seconds
        self._wait_seconds = wait_seconds
        self._record = b""
        self._seen: tuple[bytes, int] = (b"", 0)
        self._seen_at = 0.0
        self._released = threading.Event()

    def __enter__(self) -> FileLock:
        """Wait until the lock is held; from then on touch its file in a thread.

        Raises:
            truba_runner.errors.Failed: the lock was not free within `wait_seconds`.
        """
        self._record = json.dumps({"token": secrets.token_hex(8), **lock_waits.this_process()}).encode()
        beside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        write_atomically(beside, self._record)
        try:
            lock_waits.wait_for(lambda: self._try(beside), self._wait_seconds, self._path)
        finally:
            beside.unlink(missing_ok=True)
        self._released.clear()
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def _try(self, beside: Path) -> bool:
        try:
            os.link(beside, self._path)
        except FileExistsError:
            # On NFS the link may exist although its reply was lost.
            if self.held():
                return True
            self._break_stale()
            return False
        return True

    def _break_stale(self) -> None:
        try:
            seen = self._path.read_bytes(), self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        if time.monotonic() - self._seen_at < self._stale_seconds and not lock_waits.is_dead(seen[0]):
            return
        aside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            os.rename(self._path, aside)
            if aside.read_bytes() != seen[0]:
                # Another process broke the stale lock first, and this file is its new lock: put it back.
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _touch(self) -> None:
        while not self._released.wait(self._stale_seconds / 4):
            with suppress(OSError):
                if self.held():
                    os.utime(self._path)

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        self._released.set()
        if self.held():
            self._path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether no other process has broken the lock, as it may if this machine was stopped for a while."""
        return bool(self._record) and _bytes(self._path) == self._record


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace").strip()
