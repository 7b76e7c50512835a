"""Append event files on the node's local disk, and copy them to the shared disk in a thread.

Only appended bytes are copied, in whole records, so the shared file is readable at any time. The local file has no
name: nobody else can open it, and the system deletes it however the job ends. A start on another node does not need it,
as it continues at the end of the shared file.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from truba_runner.language import _
from truba_runner.log import print_error

# TFRecord format: the length of the data, its checksum, the data, their checksum.
_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4
_CHUNK_BYTES = 1 << 24


class EventFile:
    """An event file in the run directory. One thread appends; any thread may copy."""

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        """Continue after the last whole record of `path`. `scratch`: folder on the local disk; None: write directly.

        Raises:
            OSError: `scratch` is not writable.
        """
        self._path = path
        # Offsets in the file: its end at this start, the end of all appended records, and the end of those copied.
        self._found = self.end = self._there = whole_bytes(path)
        # The end of the copied bytes that are fsynced.
        self._durable = 0
        self._local: IO[bytes] | None = None
        if scratch is not None:
            self._local = tempfile.TemporaryFile(dir=scratch, buffering=0)
        # Descriptor of the shared file; kept open if records are written there directly.
        self._handle = -1
        self._copying = threading.Lock()

    def append(self, records: bytes) -> None:
        """Append whole records, to the local disk if used; once that is full, to the shared file.

        Raises:
            OSError: the shared disk is full; the records are left out, and later ones can be appended.
        """
        if self._local is not None:
            try:
                _write_at(self._local.fileno(), records, self.end - self._found)
            except OSError as error:
                self._leave_the_node(self._local, error)
        if self._local is None:
            with self._copying:
                self._write(records, self.end)
                self._there = self.end + len(records)
        # After the write: another thread copies up to this offset.
        self.end += len(records)

    def copy(self, durable: bool = False) -> int:
        """Write missing bytes to the shared file, and fsync it if `durable`; return how many bytes were written.

        Raises:
            OSError: the disk is full or not writable; only whole records were written, and a later call can continue.
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
        """Close the files; records that were not copied are lost."""
        with self._copying:
            if self._local is not None:
                self._local.close()
            self._shut()

    def _copy(self) -> int:
        copied, end = 0, self.end
        while self._local is not None and self._there < end:
            chunk = os.pread(self._local.fileno(), min(_CHUNK_BYTES, end - self._there), self._there - self._found)
            self._write(chunk, self._there)
            self._there += len(chunk)
            copied += len(chunk)
        if self._local is not None:
            # Some network file systems show a file's new size to other nodes only once it is closed.
            self._shut()
        return copied

    def _leave_the_node(self, local: IO[bytes], error: OSError) -> None:
        """Copy all and stop using the local disk, which is full; not if the shared disk is full too."""
        with self._copying:
            self._copy()
            local.close()
            self._local = None
        print_error(
            "the node's own disk takes no more of {file} ({error}); writing it straight to the shared disk",
            file=self._path.name,
            error=error.strerror,
        )

    def _write(self, data: bytes, offset: int) -> None:
        if self._handle < 0:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            size = os.fstat(self._handle).st_size
            if size < offset:
                self._shut()
                raise OSError(errno.ESTALE, _("the file was deleted or truncated meanwhile"), str(self._path))
            if size > offset:
                os.ftruncate(self._handle, offset)
        _write_at(self._handle, data, offset)

    def _shut(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def whole_bytes(path: Path) -> int:
    """Return the end of a file's last whole record; what a kill or a full disk left after it will be overwritten."""
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
    """Write all of `data` or nothing.

    Raises:
        OSError: nothing was written; the file ends at `offset`.
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
    """A thread that calls `work` at once, and then every `seconds` until it is closed."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        """Start the thread."""
        self._seconds, self._work = seconds, work
        self._closed = threading.Event()
        # A daemon: must not keep the process alive if `close` is never reached.
        self._thread = threading.Thread(target=self._go_on, name="tensorboard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread after its current call."""
        self._closed.set()
        self._thread.join()

    def _go_on(self) -> None:
        while True:
            try:
                self._work()
            except Exception:
                # No error of TensorBoard's files may end a training.
                traceback.print_exc()
            if self._closed.wait(self._seconds):
                return
