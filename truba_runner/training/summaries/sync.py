"""An event file's way to the shared disk: appended to on the node's own disk, and copied from there by a thread.

Only what was appended is copied, and whole records alone, so what is on the shared disk can be read at any time. The
file on the node has no name: nobody else can open it, and the system takes it back however the job ends. A start on
another node needs nothing of it, as it goes on where the shared file ends.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from truba_runner.language import _

# A record is its length, a checksum of that, so many bytes, and a checksum of those.
_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4
# Copied at a time; there is hardly ever as much.
_CHUNK_BYTES = 1 << 24
# Of what a full disk refuses so much is kept in memory, for when it has room again.
_MOST_WAITING_BYTES = 1 << 24


class EventFile:
    """A file of records below the run directory. One thread appends; any may copy."""

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        """Goes on after the last whole record that is there. `scratch`: on the node's own disk; None: no way round.

        Raises:
            OSError: `scratch` is not writable.
        """
        self._path = path
        # Bytes from the file's beginning: what this start found, what it has told, and what of that is at its place.
        self._found = self.told = self._there = whole_bytes(path)
        # Of those, what a loss of power leaves.
        self._durable = 0
        self._local: IO[bytes] | None = None
        if scratch is not None:
            self._local = tempfile.TemporaryFile(dir=scratch, buffering=0)
        # What is on no disk yet: its place has no room, and there is no node's disk to hold it.
        self._waiting = bytearray()
        # Of the file at its place; held open where every record goes there.
        self._handle = -1
        self._copying = threading.Lock()

    def append(self, records: bytes) -> None:
        """Adds whole records, on the node's disk where it has one; once that is full, at their place.

        Raises:
            OSError: there is no room for them. They are kept in memory and come with those after them, unless there are
                too many of them by now.
        """
        if self._local is not None:
            try:
                _write_at(self._local.fileno(), records, self.told - self._found)
            except OSError as error:
                print(
                    _(
                        "the node's own disk takes no more of {file} ({error}); it is written straight to the shared "
                        "disk",
                        file=self._path.name,
                        error=error.strerror,
                    ),
                    file=sys.stderr,
                    flush=True,
                )
                self._leave_the_node()
        if self._local is not None:
            # Last: what it counts can be read.
            self.told += len(records)
            return
        with self._copying:
            if len(self._waiting) + len(records) > _MOST_WAITING_BYTES:
                self._bring()
            self._waiting += records
            self.told += len(records)
            self._bring()

    def copy(self, durable: bool = False) -> int:
        """Brings to its place what is not there yet; returns how many bytes. `durable`: it outlasts a loss of power.

        Raises:
            OSError: the disk is full or not writable; what is there are whole records, and the rest can come later.
        """
        with self._copying:
            copied = self._copy()
        there = self._there
        if durable and self._durable < there:
            handle = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._durable = there
        return copied

    def close(self) -> None:
        """Nothing is appended any more; what was not copied is gone."""
        with self._copying:
            if self._local is not None:
                self._local.close()
            self._shut()

    def _copy(self) -> int:
        copied, told = 0, self.told
        while self._local is not None and self._there < told:
            chunk = os.pread(self._local.fileno(), min(_CHUNK_BYTES, told - self._there), self._there - self._found)
            self._write(chunk, self._there)
            self._there += len(chunk)
            copied += len(chunk)
        if self._local is not None:
            # Some network file systems show others a file's new size when it is closed.
            self._shut()
        return copied + self._bring()

    def _bring(self) -> int:
        """Writes what waits in memory; returns how many bytes."""
        count = len(self._waiting)
        if count:
            self._write(bytes(self._waiting), self._there)
            self._there += count
            self._waiting.clear()
        return count

    def _leave_the_node(self) -> None:
        """What is there alone comes to memory: the shared disk may be full too."""
        with self._copying:
            if self._local is not None:
                left = os.pread(self._local.fileno(), self.told - self._there, self._there - self._found)
                self._waiting += left
                self._local.close()
            self._local = None

    def _write(self, data: bytes, offset: int) -> None:
        if self._handle < 0:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            size = os.fstat(self._handle).st_size
            if size < offset:
                self._shut()
                raise OSError(errno.ESTALE, _("the file was taken away or cut meanwhile"), str(self._path))
            if size > offset:
                os.ftruncate(self._handle, offset)
        _write_at(self._handle, data, offset)

    def _shut(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def whole_bytes(path: Path) -> int:
    """Up to where a file has whole records; what a kill or a full disk has left behind them is overwritten."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            end = 0
            while header := file.read(_LENGTH.size):
                record = _LENGTH.unpack(header)[0] + _LENGTH.size + 2 * _CHECKSUM_BYTES if len(header) == 8 else size
                if end + record > size:
                    break
                end += record
                file.seek(end)
            return end
    except FileNotFoundError:
        return 0


def _write_at(handle: int, data: bytes, offset: int) -> None:
    """All of it or nothing.

    Raises:
        OSError: nothing; the file ends at `offset`.
    """
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, offset)
        raise


class Every:
    """A thread that does something at once, and then every so many seconds until it is closed."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        """Begins."""
        self._seconds, self._work = seconds, work
        self._closed = threading.Event()
        # A daemon: where `close` is never reached it keeps no process from ending.
        self._thread = threading.Thread(target=self._go_on, name="tensorboard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it, once what it is at is done."""
        self._closed.set()
        self._thread.join()

    def _go_on(self) -> None:
        while True:
            try:
                self._work()
            except Exception:
                # Whatever it is, it is no reason for a training to end.
                traceback.print_exc()
            if self._closed.wait(self._seconds):
                return
