"""Files that others may have written: opened without following a link, and only where they are files.

A runs folder may be a colleague's, or a copy of one. A link in it leads wherever its maker likes: into the reader's own
files, which would then stand in a report that is made to be passed on.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from truba_runner.language import _

# On the way to a file its folders are not read. Only Linux can say so.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe is not waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What a record never comes to.
_MOST_BYTES = 1 << 28


def opened(path: Path, within: Path) -> int:
    """A descriptor to read a file with; from `within` on no part of its path may be a symbolic link.

    Raises:
        OSError: there is none, it is no file, or it may not be read.
    """
    *folders, name = path.relative_to(within).parts
    if ".." in (*folders, name):
        raise OSError(errno.EINVAL, _("it leads out of its folder"), str(path))
    at = handle = -1
    try:
        at = os.open(within, _FOLDER)
        for folder in folders:
            above, at = at, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(above)
        handle = os.open(name, _FILE, dir_fd=at)
    except OSError as error:
        raise _explained(error, path, within) from error
    finally:
        if at >= 0:
            os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, _("it is no file"), str(path))
    return handle


def _explained(error: OSError, path: Path, within: Path) -> OSError:
    """The same error, of the whole path; where a link is in its way, in words."""
    at = path
    while at != within:
        if at.is_symlink():
            return OSError(errno.ELOOP, _("a symbolic link, which is not followed here"), str(at))
        at = at.parent
    error.filename = str(path)
    return error


def read(path: Path, within: Path) -> bytes:
    """A file's content.

    Raises:
        OSError: as `opened`, or it is larger than any record.
    """
    with open(opened(path, within), "rb") as file:
        content = file.read(_MOST_BYTES)
    if len(content) == _MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def names(folder: Path, within: Path) -> list[str]:
    """What a folder holds, sorted; nothing where there is none, a link is in its way, or it may not be read."""
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
    """Whether it is a file itself, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
