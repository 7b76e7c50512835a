"""A file of events: one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.runs import record_files


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

    The events are not to be altered: a file that has not changed is read once.

    Raises:
        OSError: the file cannot be read.
    """
    return record_files.events(file)[0]
