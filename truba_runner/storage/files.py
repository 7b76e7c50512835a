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
    """Write a temporary file, fsync and rename it: `path` holds the old content or the new, never a part.

    If not `durable`, skip the fsync, which takes milliseconds: a power failure may then lose the content.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    with written_whole(path, durable) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a temporary file to write to, which is renamed to `path` at the end, as `write_atomically` does.

    Its `name` is its path.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged, and the temporary file is removed.
    """
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    with _renamed(Path(file.name), path), file:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def written_by_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same folder and suffixes, for code that opens the file itself.

    Otherwise as `written_whole`.
    """
    stem, _dot, suffixes = path.name.partition(".")
    temporary = path.with_name(f".{stem}.{os.getpid()}.{suffixes}")
    with _renamed(temporary, path):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _renamed(temporary: Path, path: Path) -> Iterator[None]:
    """Rename `temporary` to `path` after the block; remove it if the block fails."""
    try:
        yield
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno:
            # The error of a failed write does not name the file.
            error.filename = error.filename or str(path)
        raise


def json_bytes(value: Any) -> bytes:
    """Encode a value as JSON, with null for NaN."""
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name in it may not be UTF-8; JSON reads this escape back as the same name.
    return text.encode(errors="backslashreplace")


def finite(value: Any) -> Any:
    """Return `value` with None for every NaN or infinite number (a diverged loss), which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
