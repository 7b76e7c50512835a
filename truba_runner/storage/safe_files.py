"""Read files that other users may have written: no symbolic links, only regular files.

A runs folder may be a colleague's, or a copy of one. A link in it may lead to the reader's own files, which would then
be in a report that is passed on.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from truba_runner.language import _

# Folders on the path are not read, so search permission suffices; O_PATH exists on Linux alone.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a named pipe does not wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# More than any record has.
_MOST_BYTES = 1 << 28


def opened(path: Path | str, within: Path | str) -> int:
    """Open a file for reading and return its descriptor; below `within`, no part of its path may be a symbolic link.

    Raises:
        OSError: the file is missing, not a regular file, behind a link, or not readable.
    """
    start, whole = f"{within}/", str(path)
    # `relative_to` takes ten times as long, which is felt where a thousand runs are read.
    below = whole[len(start) :] if whole.startswith(start) else str(Path(path).relative_to(within))
    *folders, name = below.split("/")
    if ".." in (*folders, name):
        raise OSError(errno.EINVAL, _("it points outside its folder"), str(path))
    at = handle = -1
    try:
        if folders:
            at = os.open(within, _FOLDER)
        for folder in folders:
            above, at = at, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(above)
        handle = os.open(name, _FILE, dir_fd=at) if folders else os.open(whole, _FILE)
    except OSError as error:
        raise _explained(error, Path(path), Path(within)) from error
    finally:
        if at >= 0:
            os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, _("it is not a regular file"), str(path))
    return handle


def _explained(error: OSError, path: Path, within: Path) -> OSError:
    """Return the error with the whole path; if a symbolic link caused it, an error that names the link."""
    at = path
    while at != within:
        if at.is_symlink():
            return OSError(errno.ELOOP, _("a symbolic link, which is not followed here"), str(at))
        at = at.parent
    error.filename = str(path)
    return error


def read(path: Path | str, within: Path | str) -> bytes:
    """Return a file's content.

    Raises:
        OSError: as `opened`, or the file is larger than any record.
    """
    # Unbuffered: a buffered file would first allocate as much as is asked for.
    with open(opened(path, within), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size >= _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def tail(path: Path | str, within: Path | str, most_bytes: int) -> tuple[str, bool]:
    """Return the last part of a text file, and whether that is the whole file.

    Raises:
        OSError: as `opened`.
    """
    with open(opened(path, within), "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most_bytes))
        return file.read().decode(errors="replace"), size <= most_bytes


def names(folder: Path, within: Path) -> list[str]:
    """Return a folder's sorted entries; empty if it is missing, unreadable, or reached by a link below `within`."""
    at = folder
    while at != within:
        if at.is_symlink():
            return []
        at = at.parent
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def is_file(path: Path) -> bool:
    """Whether a path is a regular file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
