"""Append-only event log: one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.runs import record_files


def append(file: Path, event: Mapping[str, Any], durable: bool = True) -> None:
    """Append one event; if `durable`, fsync it, so that it survives a crash of the machine."""
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # A disk that fills up writes a part of the line, and raises at the next write.
            line = line[os.write(handle, line) :]
        if durable:
            os.fsync(handle)
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(handle)


def read(file: Path) -> list[dict[str, Any]]:
    """Return all events, oldest first, without invalid lines. They are cached: do not change them.
    Raises:
        OSError: the file cannot be read.
    """
    return record_files.events(file)[0]
