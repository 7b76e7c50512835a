"""Many photographs as one file: decoded and resized once, then read back with one system call each.

The file: a line that says what it is; the pixels of one image after the other, uint8 RGB by rows; an index in JSON;
its length and SHA-256. The index has each image's name, place, size and CRC-32, and what the file was made of. The file
is written beside and renamed, so a reader sees a whole one or none.
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
from truba_runner.storage.files import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image

MAGIC = b"truba_runner images 1\n"
_TAIL = struct.Struct("<Q32s")
_NAMED = 5
# So many decoded images a core wait at most for those before them to be written.
_AHEAD = 4


class Damaged(ValueError):
    """A file that is no pack, or not the pack that it was."""


@dataclass(frozen=True)
class _Contents:
    """What an open file's index says. A record is an image's offset, width, height and CRC-32."""

    file: int
    digest: bytes
    about: dict[str, Any]
    records: dict[PurePosixPath, tuple[int, int, int, int]]


class Pack:
    """A packed file, open. Small to pickle; safe to use from forked processes and from threads."""

    def __init__(self, path: Path) -> None:
        """Reads the index.

        Raises:
            OSError: there is no such file.
            Damaged: it is cut short, or is something else.
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
            raise Failed(
                _("{path} was replaced by another file while it was in use; start the run again", path=self.path)
            )
        return contents

    def _read(self, file: int) -> _Contents:
        size = os.fstat(file).st_size
        tail = os.pread(file, _TAIL.size, max(0, size - _TAIL.size))
        if len(tail) != _TAIL.size or os.pread(file, len(MAGIC), 0) != MAGIC:
            raise Damaged(_("{path} is no packed file, or was cut short", path=self.path))
        length, digest = _TAIL.unpack(tail)
        begin = size - _TAIL.size - length
        text = os.pread(file, length, begin) if begin >= len(MAGIC) else b""
        if hashlib.sha256(text).digest() != digest:
            raise Damaged(_("{path} is damaged: its index is not the one that was written", path=self.path))
        index: dict[str, Any] = json.loads(text)
        records = {PurePosixPath(name): tuple(record) for name, *record in index["images"]}
        return _Contents(file, digest, index["about"], records)

    def __getstate__(self) -> dict[str, Any]:
        """The address alone: another process opens the file when it first needs it."""
        return {"path": self.path, "_digest": self._digest}

    def __del__(self) -> None:
        """Closes the file."""
        if "_contents" in self.__dict__:
            os.close(self._contents.file)

    @property
    def about(self) -> dict[str, Any]:
        """What the file was made of."""
        return self._contents.about

    @cached_property
    def names(self) -> list[PurePosixPath]:
        """The images' names, in order."""
        return in_order(self._contents.records)

    def __contains__(self, name: PurePosixPath) -> bool:
        """Whether there is an image of this name."""
        return name in self._contents.records

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.names)

    def pixels(self, name: PurePosixPath) -> tuple[bytes, int, int]:
        """An image's pixels by rows, three bytes each, its width and its height.

        Raises:
            Damaged: the file has become shorter.
        """
        offset, width, height, *_digest = self._contents.records[name]
        # Not a memory map: its pages count as the job's own memory, and a disk that fails then kills without a word.
        content = os.pread(self._contents.file, width * height * 3, offset)
        if len(content) != width * height * 3:
            raise Damaged(_("{path} was cut short; delete it, and the next run packs anew", path=self.path))
        return content, width, height

    def image(self, name: PurePosixPath) -> Image:
        """An image as Pillow's."""
        from PIL import Image

        content, width, height = self.pixels(name)
        return Image.frombytes("RGB", (width, height), content)

    def check(self) -> None:
        """Reads every pixel once, which also brings the file into memory.

        Raises:
            Damaged: one is not what was written.
        """

        def wrong(name: PurePosixPath) -> bool:
            return bool(zlib.crc32(self.pixels(name)[0]) != self._contents.records[name][3])

        with ThreadPoolExecutor(cores()) as threads:
            damaged = [
                name for name, is_wrong in zip(self.names, threads.map(wrong, self.names), strict=True) if is_wrong
            ]
        if damaged:
            raise Damaged(_("{path} is damaged, at {name} first", path=self.path, name=damaged[0]))


def presized(file: IO[bytes], size: tuple[int, int], resample: int) -> Image:
    """A photograph as fastai opens it, so large that it just covers `size` (width, height).

    Its pixels lie where fastai's Resize puts them when it crops the middle, as in validation; on both sides there are
    as many more as the photograph has.

    Raises:
        OSError: it can't be decoded.
    """
    from PIL import Image

    image = Image.open(file).convert("RGB")
    ratios = (image.width / size[0], image.height / size[1])
    spans = [
        _span(side, least, ratio, min(ratios)) for side, least, ratio in zip(image.size, size, ratios, strict=True)
    ]
    (left, right, width), (top, bottom, height) = spans
    return image.resize((width, height), resample, (left, top, right, bottom))


def _span(side: int, least: int, ratio: float, scale: float) -> tuple[float, float, int]:
    """Along one side of a photograph: from where to where it is taken, and how many pixels come of it.

    `scale` is how many of the photograph's pixels go into one, `ratio` how many would if the whole side made `least`.
    """
    crop = max(1, int(scale * least))  # This and the next line are Resize.encodes'.
    before = int(0.5 * (side - crop))
    if ratio == scale:
        return before, before + crop, least
    pixel = crop / least
    left = int(before / pixel)
    # One more at most, so that the middle of what comes out is still the middle.
    right = min(int((side - before - crop) / pixel), left + 1)
    return before - left * pixel, before + crop + right * pixel, left + least + right


def write(
    path: Path,
    photographs: Iterable[Photograph],
    size: tuple[int, int],
    resample: int,
    about: Mapping[str, Any],
) -> None:
    """Packs photographs, each with its name and a function that opens its file, on every core of this process.

    Raises:
        Failed: some cannot be decoded; they are named.
        OSError: the disk is full or not writable. What was at `path` is still there.
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
    """Each image's pixels, or why it has none, in the order of `photographs`. Pillow decodes without Python's lock."""

    def decode(opened: Callable[[], IO[bytes]]) -> tuple[bytes, int, int] | str:
        try:
            with opened() as file:
                image = presized(file, size, resample)
        except Exception as error:  # A damaged file raises whatever its decoder stumbles over.
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
    """Says which files are no images, all at once.

    Raises:
        Failed: there are some.
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
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
