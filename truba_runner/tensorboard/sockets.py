"""A Unix socket that its owner alone can open, under a name that the same request finds again."""

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

# A socket's address holds 108 bytes on Linux and 104 on others, one of them for the end.
_LONGEST_BYTES = 103


class PrivateSocket:
    """One server's place. `path` is the socket; the server that holds the lock beside it is the only one."""

    def __init__(self, key: Sequence[str]) -> None:
        """The place for the request `key`.

        Raises:
            Failed: no folder of this user's is private and short enough.
        """
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:12]
        self.path = _private_folder() / f"{name}.sock"
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Becomes the server, unless there is one."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return True

    def holder(self) -> str:
        """The process id of the server that is there."""
        return os.pread(self._lock, 20, 0).decode() or "?"

    def listen(self) -> socket.socket:
        """Opens the socket. One that a killed server left behind is replaced: the lock says that nobody is there."""
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
        """Takes the socket away and lets another be the server."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)


def _private_folder() -> Path:
    tried = []
    for folder in _candidates():
        # The name of a socket in it has 17 letters more.
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
        tried.append(_("{folder} is not yours alone", folder=folder))
    raise Failed(
        _(
            "There is no private folder for TensorBoard's socket: {tried}. Make one that is yours, of mode 0700 and "
            "with a short name, and set XDG_RUNTIME_DIR to it.",
            tried="; ".join(tried),
        )
    )


def _candidates() -> Iterator[Path]:
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "truba_runner"
    # Anyone may have made this one before us: it is used only where it is ours.
    yield Path(f"/tmp/truba_runner-{os.getuid()}")  # noqa: S108
    yield Path.home() / ".truba_runner"
