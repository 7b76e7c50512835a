"""One file of a run's results for keeping: a tar archive that carries the SHA-256 of each file in it."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from truba_runner.checkpoint import CheckpointStore
from truba_runner.errors import Failed

SUMS = "SHA256SUMS"
_CHUNK_BYTES = 1 << 20


def kept_files(folder: Path) -> list[Path]:
    """The files of a run directory, or a search's, that are worth keeping, sorted: all but spare checkpoints."""
    spare = set(spare_checkpoints(folder))
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in files if path not in spare and not path.name.startswith(".")]


def spare_checkpoints(folder: Path) -> list[Path]:
    """Those below a run directory, or a search's, that only going on would need."""
    return [path for found in sorted(folder.rglob("checkpoints")) for path in CheckpointStore(found).spare()]


def write(target: Path, root: Path, files: Sequence[Path]) -> str:
    """Writes an archive of `files`, named relative to `root`, and reads it again; returns the archive's SHA-256.

    `sha256sum -c SHA256SUMS` checks what was unpacked. `target` appears when it is whole.

    Raises:
        Failed: what was written is not what was read, or a file changed meanwhile.
        OSError: a file cannot be read, or the disk is full; `target` is as it was.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            sums = _write(file, root, files)
            file.flush()
            os.fsync(file.fileno())
        _compare(Path(beside), sums)
        digest = sha256(Path(beside))
        os.replace(beside, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    return digest


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return _digest(file)


def _write(file: IO[bytes], root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Fills the archive; the digest of each member by its name."""
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in files:
            name = path.relative_to(root).as_posix()
            sums[name] = sha256(path)
            archive.add(path, name, recursive=False)
        listing = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
        member = tarfile.TarInfo(f"{files[0].relative_to(root).parts[0]}/{SUMS}")
        member.size, member.mode = len(listing), 0o600
        archive.addfile(member, io.BytesIO(listing))
    return sums


def _compare(path: Path, sums: dict[str, str]) -> None:
    found = dict(_members(path))
    if wrong := [name for name, digest in sums.items() if found.get(name) != digest]:
        raise Failed(
            f"{', '.join(wrong)}: changed while it was being archived, or the disk lost it; nothing was kept. Is the "
            "run still going on? Give the same command again when it has ended."
        )


def _members(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if (content := archive.extractfile(member)) is not None:
                yield member.name, _digest(content)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
