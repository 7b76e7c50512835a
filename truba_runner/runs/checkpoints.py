"""Store of checkpoints, for any framework: written atomically, checksummed, pruned to the newest few and the best.

A checkpoint is one file: the writer's bytes, then their SHA-256. It is written to a temporary file and renamed. A file
that cannot be read is renamed to `*.damaged`, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from truba_runner.language import _
from truba_runner.storage.files import written_whole

_DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"checkpoint-(\d+)-(\d+)\.ckpt")
BEST = "best.ckpt"
# Suffix of a checkpoint that could not be read.
DAMAGED = ".damaged"

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Position:
    """Progress of a training: finished epochs, and steps of the epoch after them."""

    epoch: int
    step: int


def is_better(value: float | None, best: float | None, mode: str) -> bool:
    """Whether a metric's value is better than the best so far; None and NaN never are. `mode`: min or max."""
    if value is None or math.isnan(value):
        return False
    return best is None or (value > best if mode == "max" else value < best)


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Keep the newest `keep` checkpoints, and the best."""
        self._folder = folder
        self._keep = keep
        # Arguments of the last `save`, if the disk refused it.
        self._refused: tuple[Position, Callable[[IO[bytes]], None], bool] | None = None

    def save(self, position: Position, write: Callable[[IO[bytes]], None], best: bool = False) -> bool:
        """Write a checkpoint; `best` marks it as the best so far. `write` gets a file that it may only append to.

        If the disk is full or over quota, print it, keep the earlier checkpoints and return False: training continues.
        """
        path = self._path(position)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, write)
            if best:
                self._mark_best(path)
            self.retire()
        except OSError as error:
            message = _(
                "checkpoint {file} could not be written ({error}); training continues", file=path.name, error=error
            )
            print(message, file=sys.stderr, flush=True)
            self._refused = (position, write, best)
            return False
        self._refused = None
        return True

    def retry(self) -> None:
        """Retry the last refused save once, so that a finished training need not be repeated."""
        if self._refused is not None:
            self.save(*self._refused)

    def newest(self, read: Callable[[IO[bytes]], T]) -> tuple[Position, T] | None:
        """Return the position of the newest intact checkpoint and what `read` returns for it; None if there is none.

        `read` may raise ValueError, OSError, EOFError or KeyError for a checkpoint that it cannot understand.
        """
        for position, path in sorted(self._all(), reverse=True):
            if (value := self._read(path, read)) is not None:
                return position, value[0]
        return None

    def at(self, position: Position, read: Callable[[IO[bytes]], T]) -> T:
        """Return what `read` returns for the checkpoint of a position that is known to have one.

        Raises:
            OSError: the checkpoint cannot be read.
            ValueError: the checkpoint is damaged.
        """
        with _checked(self._path(position)) as file:
            return read(file)

    def position(self) -> Position:
        """Return the newest checkpoint's position, without reading the file; (0, 0) if there is no checkpoint."""
        return max((position for position, _ in self._all()), default=Position(0, 0))

    def positions(self) -> list[Position]:
        """Return the positions of all checkpoints, in order, without reading the files."""
        return sorted(position for position, _ in self._all())

    def has_best(self) -> bool:
        """Whether a checkpoint was marked as the best."""
        return (self._folder / BEST).exists()

    def best(self, read: Callable[[IO[bytes]], T]) -> T | None:
        """Return what `read` returns for the best checkpoint; None if none was marked, or it is damaged."""
        path = self._folder / BEST
        value = self._read(path, read) if path.exists() else None
        return value[0] if value is not None else None

    def _path(self, position: Position) -> Path:
        return self._folder / f"checkpoint-{position.epoch:06d}-{position.step:09d}.ckpt"

    def spare(self) -> list[Path]:
        """List the files that a finished run can delete: all but the best checkpoint, or without one, the newest."""
        found = [path for _, path in sorted(self._all(), reverse=True)]
        left = [*self._folder.glob(".checkpoint-*"), *self._folder.glob(f"*{DAMAGED}")]
        return [*(found if self.has_best() else found[1:]), *left]

    def keep_the_best_alone(self) -> None:
        """Delete the files that `spare` lists."""
        for path in self.spare():
            path.unlink(missing_ok=True)

    def _read(self, path: Path, read: Callable[[IO[bytes]], T]) -> tuple[T] | None:
        try:
            with _checked(path) as file:
                return (read(file),)
        except (OSError, ValueError, EOFError, KeyError) as error:
            message = _("{file} is damaged and is skipped: {error}", file=path.name, error=error)
            print(message, file=sys.stderr, flush=True)
            with suppress(OSError):
                # In place, the damaged file would count as one of the newest and push out good ones.
                path.rename(path.with_name(f"{path.name}{DAMAGED}"))
            return None

    def _all(self) -> Iterator[tuple[Position, Path]]:
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                yield Position(int(match[1]), int(match[2])), path

    def _mark_best(self, path: Path) -> None:
        """Hard-link the file as the best: this takes no space, and remains when the file's first name is deleted."""
        beside = self._folder / f".{BEST}"
        beside.unlink(missing_ok=True)
        os.link(path, beside)
        os.replace(beside, self._folder / BEST)

    def retire(self) -> None:
        """Delete older checkpoints, and temporary files of killed saves: safe, as a run has one writer."""
        for left in self._folder.glob(".checkpoint-*"):
            left.unlink(missing_ok=True)
        for _position, path in sorted(self._all(), reverse=True)[self._keep :]:
            path.unlink(missing_ok=True)


class _Hashing:
    """An append-only file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    with written_whole(path) as file:
        hashing = _Hashing(file)
        write(hashing)  # type: ignore[arg-type]
        file.write(hashing.digest.digest())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Fsync a folder, so that a rename in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked(path: Path) -> IO[bytes]:
    """Check a file's digest and return the file, open at its start.

    Raises:
        ValueError: the digest is wrong.
    """
    digest, length = hashlib.sha256(), path.stat().st_size - _DIGEST_BYTES
    file = path.open("rb")
    left = length
    while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
        digest.update(chunk)
        left -= len(chunk)
    if length <= 0 or file.read() != digest.digest():
        file.close()
        raise ValueError(_("its SHA-256 does not match the one recorded when it was written"))
    file.seek(0)
    return file
