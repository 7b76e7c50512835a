"""Pack many images into one file: decoded and resized once, then read with one system call each.

File format: a magic line; the pixels of the images in turn, uint8 RGB by rows; an index in JSON; its length and
SHA-256. The index has each image's name, offset, size and CRC-32, and what the file was made from. The file is written
under a temporary name and renamed, so a reader sees a complete file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from truba_runner.data.image_names import in_order
from truba_runner.data.image_sources import Photograph
from truba_runner.errors import Failed
from truba_runner.language import _, counted
from truba_runner.older_python import zip_equal
from truba_runner.storage.files import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image

MAGIC = b"truba_runner images 1\n"
_TAIL = struct.Struct("<Q32s")
_NAMED = 5
# Most images per core that are decoded ahead of the one being written.
_AHEAD = 4


class Damaged(ValueError):
    """A file that is not a pack, or is a damaged one."""


@dataclass(frozen=True)
class _Contents:
    """An open file and its index. A record is an image's offset, width, height and CRC-32."""

    file: int
    digest: bytes
    about: dict[str, Any]
    records: dict[PurePosixPath, tuple[int, int, int, int]]


class Pack:
    """An open packed file. Small to pickle; safe to use in forked processes and threads."""

    def __init__(self, path: Path) -> None:
        """Read the index.

        Raises:
            OSError: the file does not exist.
            Damaged: the file is truncated, or not a pack.
        """
        self.path = path
        self._digest = self._contents.digest

    @cached_property
    def _contents(self) -> _Contents:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            contents = self._read(file)
        except BaseException:
            os.close(file)
            raise
        if self.__dict__.get("_digest", contents.digest) != contents.digest:
            os.close(file)
            raise Failed("{path} was replaced by another file while it was in use; start the run again", path=self.path)
        return contents

    def _read(self, file: int) -> _Contents:
        size = os.fstat(file).st_size
        tail = os.pread(file, _TAIL.size, max(0, size - _TAIL.size))
        if len(tail) != _TAIL.size or os.pread(file, len(MAGIC), 0) != MAGIC:
            raise Damaged(_("{path} is not a packed file, or is truncated", path=self.path))
        length, digest = _TAIL.unpack(tail)
        begin = size - _TAIL.size - length
        text = os.pread(file, length, begin) if begin >= len(MAGIC) else b""
        if hashlib.sha256(text).digest() != digest:
            raise Damaged(_("{path} is damaged: its index does not match its checksum", path=self.path))
        index: dict[str, Any] = json.loads(text)
        records = {PurePosixPath(name): tuple(record) for name, *record in index["images"]}
        return _Contents(file, digest, index["about"], records)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle path and digest only; another process opens the file at first use."""
        return {"path": self.path, "_digest": self._digest}

    def __del__(self) -> None:
        """Close the file."""
        if "_contents" in self.__dict__:
            os.close(self._contents.file)

    @property
    def about(self) -> dict[str, Any]:
        """What the file was made from."""
        return self._contents.about

    @cached_property
    def names(self) -> list[PurePosixPath]:
        """The images' names, in order."""
        return in_order(self._contents.records)

    def __contains__(self, name: PurePosixPath) -> bool:
        """Whether the file has an image of this name."""
        return name in self._contents.records

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def pixels(self, name: PurePosixPath) -> tuple[bytes, int, int]:
        """Return an image's pixels by rows, three bytes each, its width and its height.

        Raises:
            Damaged: the file has been truncated.
        """
        offset, width, height, *_digest = self._contents.records[name]
        # Not a memory map: its pages count as the job's memory, and a disk error would kill the job without a message.
        content = os.pread(self._contents.file, width * height * 3, offset)
        if len(content) != width * height * 3:
            raise Damaged(_("{path} is truncated; delete it, and the next run packs the images again", path=self.path))
        return content, width, height

    def image(self, name: PurePosixPath) -> Image:
        """Return an image as a Pillow Image."""
        from PIL import Image

        content, width, height = self.pixels(name)
        return Image.frombytes("RGB", (width, height), content)

    def check(self) -> None:
        """Compare the CRC-32 of every image, which also reads the file into the page cache.

        Raises:
            Damaged: an image has changed.
        """

        def wrong(name: PurePosixPath) -> bool:
            return bool(zlib.crc32(self.pixels(name)[0]) != self._contents.records[name][3])

        with ThreadPoolExecutor(cores()) as threads:
            damaged = [name for name, is_wrong in zip_equal(self.names, threads.map(wrong, self.names)) if is_wrong]
        if damaged:
            raise Damaged(_("{path} is damaged; the first damaged image is {name}", path=self.path, name=damaged[0]))


def presized(file: IO[bytes], size: tuple[int, int], resample: int) -> Image:
    """Open an image as fastai does, and resize it to just cover `size` (width, height).

    The pixels are those of fastai's Resize when it crops the middle, as in validation; on both sides of the crop the
    remaining pixels of the image are kept.

    Raises:
        OSError: the image cannot be decoded.
    """
    from PIL import Image

    image = Image.open(file).convert("RGB")
    ratios = (image.width / size[0], image.height / size[1])
    spans = [_span(side, least, ratio, min(ratios)) for side, least, ratio in zip_equal(image.size, size, ratios)]
    (left, right, width), (top, bottom, height) = spans
    return image.resize((width, height), resample, (left, top, right, bottom))


def _span(side: int, least: int, ratio: float, scale: float) -> tuple[float, float, int]:
    """Return for one side of an image where the resized part begins and ends, and its size in resized pixels.

    `scale` is the number of image pixels per resized pixel; `ratio` the same if the whole side gave `least` pixels.
    """
    crop = max(1, int(scale * least))  # This and the next line are from Resize.encodes.
    before = int(0.5 * (side - crop))
    if ratio == scale:
        return before, before + crop, least
    pixel = crop / least
    left = int(before / pixel)
    # At most one more than on the left, so that the middle of the result is still the middle of the image.
    right = min(int((side - before - crop) / pixel), left + 1)
    return before - left * pixel, before + crop + right * pixel, left + least + right


def write(
    path: Path, photographs: Iterable[Photograph], size: tuple[int, int], resample: int, about: Mapping[str, Any]
) -> None:
    """Pack images, given as names and functions that open them, on all cores of this process.

    Raises:
        truba_runner.errors.Failed: some images cannot be decoded; the message names them.
        OSError: the disk is full or not writable; an earlier file at `path` is unchanged.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(MAGIC)
        images, unreadable = [], []
        for name, decoded in _decoded(photographs, size, resample):
            if isinstance(decoded, str):
                unreadable.append((name, decoded))
                continue
            content, width, height = decoded
            images.append((str(name), file.tell(), width, height, zlib.crc32(content)))
            file.write(content)
        refuse_unreadable(unreadable)
        text = json.dumps({"about": dict(about), "images": images}, separators=(",", ":")).encode()
        file.write(text + _TAIL.pack(len(text), hashlib.sha256(text).digest()))


def _decoded(
    photographs: Iterable[Photograph], size: tuple[int, int], resample: int
) -> Iterator[tuple[PurePosixPath, tuple[bytes, int, int] | str]]:
    """Yield each image's pixels, or its error, in the given order. Threads suffice, as Pillow releases the GIL."""

    def decode(opened: Callable[[], IO[bytes]]) -> tuple[bytes, int, int] | str:
        try:
            with opened() as file:
                image = presized(file, size, resample)
        except Exception as error:  # Decoders raise exceptions of any type for damaged files.
            return f"{error}"
        return image.tobytes(), image.width, image.height

    waiting: deque[tuple[PurePosixPath, Future[tuple[bytes, int, int] | str]]] = deque()
    with ThreadPoolExecutor(cores()) as threads:
        for name, opened in photographs:
            waiting.append((name, threads.submit(decode, opened)))
            if len(waiting) > _AHEAD * cores():
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def refuse_unreadable(unreadable: list[tuple[PurePosixPath, str]]) -> None:
    """Raise one error for all files that cannot be read as images, with their reasons.

    Raises:
        truba_runner.errors.Failed: `unreadable` is not empty.
    """
    if not unreadable:
        return
    named = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:_NAMED])
    if (left := len(unreadable) - _NAMED) > 0:
        named += "; " + counted("and {count} more", "and {count} more", left)
    raise Failed(
        counted(
            "{count} image cannot be read: {named}. Delete or replace it.",
            "{count} images cannot be read: {named}. Delete or replace them.",
            len(unreadable),
            named=named,
        )
    )


def cores() -> int:
    """Return the number of cores of this process: those Slurm gave its task, at most those that it may use."""
    usable = len(os.sched_getaffinity(0))
    return min(usable, int(os.environ.get("SLURM_CPUS_PER_TASK", usable)))
