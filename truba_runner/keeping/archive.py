"""Archive a run's files as a tar file that contains the SHA-256 of each."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from truba_runner.errors import Failed, Problem, Refused, listed
from truba_runner.language import _
from truba_runner.runs.checkpoints import DAMAGED, CheckpointStore
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import safe_files

SUMS = "SHA256SUMS"
_CHUNK_BYTES = 1 << 20


def kept_files(folder: Path) -> list[Path]:
    """Return the files of a run or search directory that are worth archiving, sorted.

    These are all files but damaged and hidden (temporary) ones and, once there is a result, spare checkpoints.
    """
    spare = set(spare_checkpoints(folder)) if RunDir(folder).result() else set()
    files = (path for path in _below(folder) if safe_files.is_file(path))
    return [path for path in files if path not in spare and not path.name.startswith(".") and path.suffix != DAMAGED]


def spare_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints below a run or search directory that are needed only for resuming."""
    found = [path for path in _below(folder) if path.name == "checkpoints" and safe_files.is_folder(path)]
    return [path for one in found for path in CheckpointStore(one).spare() if safe_files.is_file(path)]


def _below(folder: Path) -> list[Path]:
    """Return all paths below a folder, sorted; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """

    def cannot_be_read(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found: list[Path] = []
    for path, folders, names in os.walk(folder, onerror=cannot_be_read):
        found += [Path(path) / name for name in (*folders, *names)]
    return sorted(found)


def write(target: Path, root: Path, files: Sequence[Path]) -> str:
    """Write an archive of `files`, named relative to `root`, verify it, and return its SHA-256.

    `sha256sum -c SHA256SUMS` checks the unpacked files. `target` is replaced atomically, once the archive is complete.

    Raises:
        truba_runner.errors.Refused: an older archive at `target` has files that are not among `files`.
        truba_runner.errors.Failed: a file changed meanwhile, or the archive does not read back as written.
        OSError: a file cannot be read, or the disk is full; `target` is unchanged.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_to_lose(target, {path.relative_to(root).as_posix() for path in files})
    _remove_what_a_kill_left(target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=_temporary_prefix(target))
    try:
        with os.fdopen(handle, "wb") as file:
            # Held until the file is closed: other commands delete temporary archives that nobody has locked.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            sums = _write(file, root, files)
            file.flush()
            os.fsync(file.fileno())
        _compare(Path(temporary), sums)
        digest = sha256(Path(temporary))
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return digest


def _refuse_to_lose(target: Path, names: set[str]) -> None:
    """Raise Refused if the archive at `target` has files that are not in `names`, as one made before a purge may."""
    if not target.exists():
        return
    try:
        with tarfile.open(target) as older:
            held = {member.name for member in older if member.isfile()}
    except (OSError, tarfile.TarError):  # An unreadable archive may be replaced.
        return
    if lost := sorted(name for name in held - names if not _comes_and_goes(name)):
        raise Refused(
            Problem(
                str(target),
                _("this archive has files that the run no longer has: {files}.", files=listed(lost)),
                _("Archive to another folder (--to FOLDER), or move this archive away."),
            )
        )


def _comes_and_goes(name: str) -> bool:
    base = PurePosixPath(name).name
    return base == SUMS or base.startswith("checkpoint-")


def _remove_what_a_kill_left(target: Path) -> None:
    for left in target.parent.glob(f"{glob.escape(_temporary_prefix(target))}*"):
        with suppress(OSError), open(safe_files.opened(left, left.parent), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _temporary_prefix(target: Path) -> str:
    return f".{target.name}."


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(safe_files.opened(path, path.parent), "rb") as file:
        return _digest(file)


def _write(file: IO[bytes], root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Write the archive and return each member's SHA-256 by name."""
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="w") as archive:
        # The archive needs the folders too: unpacking restores their permissions.
        for folder in sorted({folder for path in files for folder in path.relative_to(root).parents} - {Path(".")}):
            archive.add(root / folder, folder.as_posix(), recursive=False)
        for path in files:
            name = path.relative_to(root).as_posix()
            sums[name] = sha256(path)
            _add(archive, path, root, name)
        listing = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
        member = tarfile.TarInfo(f"{files[0].relative_to(root).parts[0]}/{SUMS}")
        member.size, member.mode = len(listing), 0o600
        archive.addfile(member, io.BytesIO(listing))
    return sums


def _add(archive: tarfile.TarFile, path: Path, root: Path, name: str) -> None:
    """Add a file; fail if it has become a link."""
    with open(safe_files.opened(path, root), "rb") as content:
        member = archive.gettarinfo(arcname=name, fileobj=content)
        # A hard link to a member has no content of its own.
        archive.addfile(member, content if member.isreg() else None)


def _compare(path: Path, sums: dict[str, str]) -> None:
    found = dict(_members(path))
    if wrong := [name for name, digest in sums.items() if found.get(name) != digest]:
        raise Failed(
            "{files}: changed while being archived, or could not be read back from the disk; nothing was archived. "
            "Is the run still running? Run the same command again when it has ended.",
            files=listed(wrong),
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
