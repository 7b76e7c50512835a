"""Numbers over time for TensorBoard, in event files of our own: no framework is asked, and each number is whole."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any


class Scalars:
    """Writes event files below a folder, a subfolder a curve's kind. A disk that refuses them stops no training."""

    def __init__(self, folder: Path) -> None:
        """Opens nothing before the first number."""
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._off = False

    def add(self, kind: str, tag: str, step: int, value: float) -> None:
        """One number of the curve `tag`; `kind` is train or validation."""
        if self._off:
            return
        try:
            self._write(kind, tag, step, value)
        except (ImportError, OSError) as error:
            self._give_up(error)

    def flush(self) -> None:
        """Lets the system have all that was added."""
        try:
            for file in self._files.values():
                file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """No number comes any more."""
        self.flush()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _give_up(self, error: Exception) -> None:
        self._off = True
        print(
            f"TensorBoard's event files could not be written ({error}); training goes on", file=sys.stderr, flush=True
        )

    def _write(self, kind: str, tag: str, step: int, value: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if kind not in self._files:
            self._open(kind)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        self._record(self._files[kind], Event(wall_time=time.time(), step=step, summary=summary))

    def _open(self, kind: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        folder = self._folder / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._files[kind] = (folder / name).open("wb")
        self._record(self._files[kind], Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _record(self, file: IO[bytes], event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(file).write(event.SerializeToString())
