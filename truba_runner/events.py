"""A file of events: one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from truba_runner import record_files


def append(file: Path, event: Mapping[str, Any], durable: bool = True) -> None:
    """Appends one event; `durable`, it is on disk when this returns, whatever happens to the machine then."""
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # A disk that fills up takes a part of it, and says so at the rest.
            line = line[os.write(handle, line) :]
        if durable:
            os.fsync(handle)
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(handle)


def read(file: Path) -> list[dict[str, Any]]:
    """Every event, oldest first. A line that a full disk or a kill cut short, or that is no event, is passed over.

    Raises:
        OSError: the file cannot be read.
    """
    return record_files.events(file)[0]


def read_shared(file: Path) -> list[dict[str, Any]]:
    """As `read`, for a file that a thousand runs look into: read again only where it has changed. Not to be altered."""
    try:
        stat = file.lstat()
    except FileNotFoundError:
        return []
    return _read_once(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read_once(file: Path, mtime_ns: int, size: int) -> list[dict[str, Any]]:
    return read(file)
