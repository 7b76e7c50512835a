"""Read images from a folder, or from a tar archive in one pass, without unpacking it."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Any

from truba_runner.data.image_names import is_image, names_in
from truba_runner.errors import Failed

# An image's name, and a function that opens it.
Photograph = tuple[PurePosixPath, Callable[[], IO[bytes]]]


@dataclass(frozen=True)
class Folder:
    """Images as files under the folder `path`."""

    path: Path

    def identity(self) -> dict[str, Any]:
        """Return a digest of all names, sizes and times, to detect changes."""
        digest = sha256()
        for name in names_in(self.path):
            about = (self.path / name).stat()
            digest.update(os.fsencode(f"{name}\t{about.st_size}\t{about.st_mtime_ns}\n"))
        return {"folder": digest.hexdigest()}

    def photographs(self) -> Iterator[Photograph]:
        """Yield the images, sorted by name."""
        for name in names_in(self.path):
            yield name, partial(_open, self.path / name)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


@dataclass(frozen=True)
class Archive:
    """Images in a tar archive, under its folder `inside`."""

    path: Path
    inside: PurePosixPath

    def identity(self) -> dict[str, Any]:
        """Return name, size and time of the archive, to detect changes."""
        about = self.path.stat()
        return {"archive": self.path.name, "inside": str(self.inside), "bytes": about.st_size, "ns": about.st_mtime_ns}

    def photographs(self) -> Iterator[Photograph]:
        """Yield the images in the archive's order.

        Raises:
            truba_runner.errors.Failed: the archive is damaged.
        """
        archive = _checked(self.path, lambda: tarfile.open(self.path, "r|*"))  # noqa: SIM115
        with archive:
            while (member := _checked(self.path, archive.next)) is not None:
                name = self._name(member)
                if name is not None and (file := archive.extractfile(member)) is not None:
                    yield name, partial(io.BytesIO, _checked(self.path, file.read))

    def _name(self, member: tarfile.TarInfo) -> PurePosixPath | None:
        """Return an image's name under `inside`; None for other members and links, so none can leave the target."""
        path = PurePosixPath(member.name)
        if not member.isreg() or path.is_absolute() or ".." in path.parts or not path.is_relative_to(self.inside):
            return None
        name = path.relative_to(self.inside)
        return name if is_image(name) else None

    def unpack(self, into: Path) -> None:
        """Unpack only the images of the archive into an existing folder.

        Raises:
            truba_runner.errors.Failed: the archive is damaged.
            OSError: the disk is full or not writable.
        """
        for name, opened in self.photographs():
            target = into / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with opened() as file:
                target.write_bytes(file.read())


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Failed(
            "{path} cannot be unpacked ({error}): it is truncated, damaged or not an archive. Fetch it again with "
            "truba stage.",
            path=path,
            error=error,
        ) from error


def source_at(path: Path) -> Folder | Archive:
    """Return the images at a path, which may lead into an archive as into a folder: `data/pets.tgz/pets/images`.

    If the archive is already unpacked next to it, that folder is used.

    Raises:
        truba_runner.errors.Failed: neither a folder nor an archive exists there.
    """
    if path.is_dir():
        return Folder(path)
    for archive in path.parents:
        if archive.is_file():
            inside = path.relative_to(archive)
            unpacked = archive.parent / inside
            return Folder(unpacked) if unpacked.is_dir() else Archive(archive, PurePosixPath(inside.as_posix()))
    if path.is_file():
        return Archive(path, PurePosixPath())
    raise Failed(
        "There is no {path}, neither a folder of images nor an archive. The path comes from data.name and data.folder.",
        path=path,
    )
