"""A Unix socket that only its owner can open, with a path derived from the request, so that equal requests share it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.language import _

# A Unix socket address has 108 bytes on Linux and 104 on other systems, one of them for the final NUL.
_LONGEST_BYTES = 103


class PrivateSocket:
    """The socket (`path`) of one server, and a lock file next to it that admits only one server."""

    def __init__(self, key: Sequence[str]) -> None:
        """Derive the path from `key`, the options of the request, and open the lock file.

        Raises:
            truba_runner.errors.Failed: no folder is private to this user and has a short enough path.
        """
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:12]
        self.path = _private_folder() / f"{name}.sock"
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Take the lock and record this process id; return False if another server holds it."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return True

    def holder(self) -> str:
        """Return the process id of the running server, "?" if unknown."""
        return os.pread(self._lock, 20, 0).decode() or "?"

    def listen(self) -> socket.socket:
        """Open the socket; replace one left by a killed server: this process holds the lock, so no other runs."""
        self.path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o177)
        try:
            made.bind(str(self.path))
        finally:
            os.umask(umask)
        made.listen(64)
        return made

    def leave(self) -> None:
        """Delete the socket and release the lock."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)


def _private_folder() -> Path:
    tried = []
    for folder in _candidates():
        # The socket's name adds a slash and 17 characters.
        if len(os.fsencode(folder)) + 18 > _LONGEST_BYTES:
            tried.append(_("{folder} is too long for a socket's address", folder=folder))
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            about = folder.lstat()
        except OSError as error:
            tried.append(f"{folder}: {error.strerror}")
            continue
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077:
            return folder
        tried.append(_("{folder} is not private to you", folder=folder))
    raise Failed(
        "There is no private folder for TensorBoard's socket: {tried}. Create a folder with a short path (mkdir -m "
        "700 FOLDER), and set XDG_RUNTIME_DIR to it.",
        tried="; ".join(tried),
    )


def _candidates() -> Iterator[Path]:
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "truba_runner"
    # Another user may have created this one: `_private_folder` checks the owner.
    yield Path(f"/tmp/truba_runner-{os.getuid()}")  # noqa: S108
    yield Path.home() / ".truba_runner"
