"""What TensorBoard is shown of a run, in event files of our own: both frameworks' have the same names and layout.

train/ and validation/ have one file each, which a run that goes on appends to. A disk that refuses them is told of once
and stops no training. Rank 0 alone writes.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from truba_runner.config import partitions
from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.summaries import event_files
from truba_runner.training.summaries.sync import EventFile, Every


class Board:
    """The event files below a folder."""

    def __init__(self, folder: Path, scratch: Path | None = None, enabled: bool = True) -> None:
        """Opens nothing before the first number. `scratch`: a folder on the node's own disk that they go by way of."""
        self.folder, self.enabled = folder, enabled
        self._scratch = scratch
        self._files: dict[str, EventFile] = {}
        self._told_of: set[str] = set()

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A point of each of these curves; `kind` is train or validation."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(kind, step, summary=Summary(value=points))

    def image(self, kind: str, tag: str, step: int, png: bytes) -> None:
        """A picture."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        # Where a PNG says it: width and height, big-endian, after the signature and the first chunk's head.
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.add(kind, step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def add(self, kind: str, step: int, **content: Any) -> None:
        """An event with what TensorBoard's protocol has for it: `summary`, or `graph_def` in bytes."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        with self._complaining():
            file = self._files.get(kind) or self._open(kind)
            begins = b"" if file.told else _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
            file.append(begins + _record(Event(wall_time=time.time(), step=step, **content)))

    def sizes(self) -> dict[str, int]:
        """As `event_files.sizes`; of its own files what they will be once all that was told is at its place."""
        if not self.enabled:
            return {}
        own = {f"{kind}/{event_files.OWN}": file.told for kind, file in self._files.items()}
        return {**event_files.sizes(self.folder), **own}

    def copy(self, durable: bool = False) -> int:
        """Brings to the shared disk what is not there yet; returns how many bytes. Any thread may."""
        copied = 0
        for file in [*self._files.values()]:
            with self._complaining():
                copied += file.copy(durable)
        return copied

    def settle(self) -> None:
        """Before a checkpoint is written: a run that goes on from it finds there what it counts on."""
        self.copy(durable=True)

    def close(self) -> None:
        """Nothing comes any more."""
        self.copy()
        for file in self._files.values():
            file.close()

    def _open(self, kind: str) -> EventFile:
        path = self.folder / kind / event_files.OWN
        try:
            file = EventFile(path, self._scratch)
        except OSError as error:
            if self._scratch is None:
                raise
            self._tell(
                _("tensorboard.node_local: {error}; writing to {folder} itself", error=error, folder=self.folder)
            )
            self._scratch = None
            file = EventFile(path)
        self._files[kind] = file
        return file

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tell(_("TensorBoard's event files could not be written ({error}); training goes on", error=error))

    def _tell(self, text: str) -> None:
        kind = text.split("(")[0]
        if kind not in self._told_of:
            self._told_of.add(kind)
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)


@contextmanager
def opened(context: Context, beside: Callable[[], object] | None = None) -> Iterator[Board]:
    """The board of a run, copied every `tensorboard.sync_seconds` and at the end, whatever ends it.

    `beside` is called as often, in the same thread.
    """
    settings = context.experiment.tensorboard
    enabled = settings.enabled and context.rank == 0 and _has_tensorboard()
    on_the_node = settings.node_local and context.experiment.cluster.scheduler == "slurm"
    board = Board(context.run.tensorboard, partitions.scratch_of(context.experiment) if on_the_node else None, enabled)

    def work() -> None:
        board.copy()
        if beside:
            beside()

    thread = Every(settings.sync_seconds, work) if enabled and (on_the_node or beside) else None
    try:
        yield board
    finally:
        if thread:
            thread.close()
        board.close()


def _has_tensorboard() -> bool:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        print(
            _("TensorBoard's event files are not written ({error}); training goes on", error=error),
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    RecordWriter(file).write(event.SerializeToString())
    return file.getvalue()
