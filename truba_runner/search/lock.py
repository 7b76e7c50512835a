"""One process at a time changes a search: a lock on a shared file system, of whichever kind works there.

| kind | what it is | when its owner dies |
|---|---|---|
| fcntl | the kernel's (`lockf`): on Lustre mounted with `flock`, on NFS with a lock service | it is free at once |
| file | a file of a name that only one process can make (`link`) | it is broken after a while |
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
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from truba_runner import lock_waits
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.rundir import write_atomically

KINDS = ("auto", "fcntl", "file")
# A lock file whose owner has not touched it for so long, as seen by one who waits, is broken.
STALE_SECONDS = 60.0
# A transaction takes less than a second; a holder that is neither done nor dead after this is stuck.
WAIT_SECONDS = 600.0
# Mounted so, a lock is known to its own node alone.
_LOCAL_ONLY = {"localflock", "nolock", "local_lock=all", "local_lock=posix"}


class Lock(Protocol):
    """What `lock_for` gives: to be entered, and asked before a write whether it is held still."""

    def __enter__(self) -> Lock:
        """Waits until it is held."""

    def __exit__(self, *exception: object) -> None:
        """Lets it go."""

    def held(self) -> bool:
        """Whether nobody has broken it meanwhile."""


def lock_for(folder: Path, wanted: str = "auto") -> Lock:
    """The lock of a search's folder; the first who asks decides on its kind, for all.

    Raises:
        OSError: the folder cannot be written to.
    """
    file = folder / "lock.kind"
    if not file.exists():
        _decide(file, wanted if wanted != "auto" else ("fcntl" if fcntl_works(folder) else "file"))
    return FcntlLock(folder / "lock") if _text(file) == "fcntl" else FileLock(folder / "lock.owner")


def check(folder: Path) -> None:
    """Whether the kind that was decided on works on this machine too; once a process.

    Raises:
        truba_runner.errors.Failed: it does not.
    """
    if _text(folder / "lock.kind") == "fcntl" and not fcntl_works(folder):
        raise Failed(
            _(
                "{folder} is locked with fcntl (its lock.kind), which does not work on {host}. Start the search in "
                "another directory with sweep.lock=file, or keep away from this node.",
                folder=folder,
                host=socket.gethostname(),
            )
        )


def _decide(file: Path, kind: str) -> None:
    """Writes the kind, unless another has meanwhile."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    write_atomically(beside, kind.encode())
    with suppress(FileExistsError):
        os.link(beside, file)
    beside.unlink()


# -- of the kernel ---------------------------------------------------------------------------------------------


class FcntlLock:
    """POSIX's record lock on a whole file."""

    def __init__(self, path: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        """`path` is made where it is missing, and never taken away."""
        self._path = path
        self._wait_seconds = wait_seconds
        self._handle = -1

    def __enter__(self) -> FcntlLock:
        """Waits until it is held.

        Raises:
            truba_runner.errors.Failed: it was not within `wait_seconds`.
        """
        self._handle = lock_waits.opened(self._path)
        try:
            lock_waits.wait_for(self._try, self._wait_seconds, self._path)
        except BaseException:
            os.close(self._handle)
            raise
        lock_waits.sign(self._handle)
        return self

    def _try(self) -> bool:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def __exit__(self, *exception: object) -> None:
        """Lets it go."""
        os.close(self._handle)

    def held(self) -> bool:
        """The kernel breaks none."""
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
    """Whether a second process is kept out while one holds the lock, and let in after; and on other nodes too."""
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
    """How the file system that a folder lies on is mounted: its type first, then its options."""
    found: tuple[int, list[str]] = (-1, [])
    with suppress(OSError):
        for line in table.read_text().splitlines():
            _, place, kind, options, *_ = line.split()
            place = place.replace("\\040", " ")
            if folder.resolve().is_relative_to(place) and len(place) >= found[0]:
                found = len(place), [kind, *options.split(",")]
    return found[1]


# -- a file ----------------------------------------------------------------------------------------------------


class FileLock:
    """A file that only one process can make, with its owner's record in it.

    One whose owner has died is known by not changing, on the clock of the one who waits: those of two machines differ.
    """

    def __init__(self, path: Path, stale_seconds: float = STALE_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        """`path` is there while it is held."""
        self._path = path
        self._stale_seconds = stale_seconds
        self._wait_seconds = wait_seconds
        self._record = b""
        self._seen: tuple[bytes, int] = (b"", 0)
        self._seen_at = 0.0
        self._released = threading.Event()

    def __enter__(self) -> FileLock:
        """Waits until it is held, and touches it from then on.

        Raises:
            truba_runner.errors.Failed: it was not within `wait_seconds`.
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
            # NFS may have made the link and lost the answer.
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
                # Another has broken it first, and this one is new: it goes back.
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _touch(self) -> None:
        while not self._released.wait(self._stale_seconds / 4):
            with suppress(OSError):
                if self.held():
                    os.utime(self._path)

    def __exit__(self, *exception: object) -> None:
        """Lets it go."""
        self._released.set()
        if self.held():
            self._path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether nobody has broken it: its owner's machine may have stood still."""
        return bool(self._record) and _bytes(self._path) == self._record


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace").strip()
