"""Free space and files of a folder: of its file system, and of the user's quota on it."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from truba_runner.language import _

_ANSWER_SECONDS = 3.0
_KILOBYTE = 1024


@dataclass(frozen=True)
class Room:
    """Usage and limit of a file system or quota, in bytes or files."""

    source: str
    what: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """The used share of the limit; 1.0 is all of it."""
        return self.used / self.limit if self.limit else 0.0

    def said(self) -> str:
        """Describe the usage."""
        percent = f"{100 * self.share:.0f}"
        if self.what == "bytes":
            used, limit = size(self.used), size(self.limit)
            return _("{used} of {limit} in use ({percent}%)", used=used, limit=limit, percent=percent)
        return _("{used} of {limit} files in use ({percent}%)", used=self.used, limit=self.limit, percent=percent)


def size(count: float) -> str:
    """Format a number of bytes with a unit; 1 KB is 1000 B."""
    units = ("B", "KB", "MB", "GB", "TB", "PB")
    index = 0
    while count >= 1000 and index < len(units) - 1:
        count, index = count / 1000, index + 1
    return f"{count:.3g} {units[index]}"


def rooms(folder: Path) -> list[Room]:
    """Return the usage of a folder's file system, and of the user's quota if there is one.

    Raises:
        OSError: the folder does not exist.
    """
    return [*_of_file_system(folder), *_quota(folder)]


def _of_file_system(folder: Path) -> Iterator[Room]:
    disk = os.statvfs(folder)
    # Blocks reserved for root count as used.
    yield Room(f"df {folder}", "bytes", (disk.f_blocks - disk.f_bavail) * disk.f_frsize, disk.f_blocks * disk.f_frsize)
    if disk.f_files:
        yield Room(f"df -i {folder}", "files", disk.f_files - disk.f_favail, disk.f_files)


def _quota(folder: Path) -> list[Room]:
    """Return the user's quota on Lustre; empty elsewhere, as other file systems have other commands, or none."""
    if shutil.which("lfs") is None:
        return []
    argv = ["lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)]
    try:
        text = subprocess.run(argv, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return quota_in(text, "lfs quota")


def quota_in(text: str, source: str) -> list[Room]:
    """Parse the output of `lfs quota -q`: path, then kilobytes and files, each as used, quota, limit and grace."""
    found = re.search(r"\s(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s", f" {' '.join(text.split())} ")
    if found is None:
        return []
    kilobytes, soft, hard, files, soft_files, hard_files = (int(number) for number in found.groups())
    limits = (("bytes", kilobytes * _KILOBYTE, (soft or hard) * _KILOBYTE), ("files", files, soft_files or hard_files))
    return [Room(source, what, used, limit) for what, used, limit in limits if limit]
