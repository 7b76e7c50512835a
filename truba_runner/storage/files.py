"""Files written atomically; JSON with null for NaN."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Writes beside `path`, syncs and renames: `path` holds the old content or the new, never a part.

    Not `durable`, it is not synced, which takes milliseconds: a loss of power may then leave nothing of it.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    with written_whole(path, durable) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write to, beside `path`, as `write_atomically` does it: it takes that name once it is whole.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged, and nothing is left beside it.
    """
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            # Of a write that failed the system does not say where it was to.
            error.filename = error.filename or str(path)
        raise


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file's name may be no UTF-8; written so, JSON reads it back as it was.
    return text.encode(errors="backslashreplace")


def finite(value: Any) -> Any:
    """`value` with null for every number that JSON has no word for: a loss that became NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
