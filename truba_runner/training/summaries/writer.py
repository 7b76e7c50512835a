"""Write TensorBoard event files, with the same names and layout for both frameworks.

train/ and validation/ have one file each, to which a resumed run appends. A write error is printed once and does not
stop the training. Only rank 0 writes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from truba_runner.config import partitions
from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.training.backend import Context
from truba_runner.training.summaries import event_files
from truba_runner.training.summaries.sync import EventFile, Every


class SummaryWriter:
    """Writer of the event files below a folder."""

    def __init__(self, folder: Path, scratch: Path | None = None, enabled: bool = True) -> None:
        """Open no file before the first event. `scratch`: a folder on the local disk to write to first; see `sync`."""
        self.folder, self.enabled = folder, enabled
        self._scratch = scratch
        self._files: dict[str, EventFile] = {}
        self._warned_of: set[str] = set()

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write a point of each of these curves; `kind` is train or validation."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(kind, step, summary=Summary(value=points))

    def image(self, kind: str, tag: str, step: int, png: bytes) -> None:
        """Write a PNG image."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        # A PNG's width and height, big-endian, after the signature and the head of the first chunk.
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.add(kind, step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def add(self, kind: str, step: int, **content: Any) -> None:
        """Write an event; `content` are fields of TensorBoard's Event message: `summary`, or `graph_def` in bytes."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        with self._complaining():
            file = self._files.get(kind) or self._open(kind)
            begins = b"" if file.end else _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
            file.append(begins + _record(Event(wall_time=time.time(), step=step, **content)))

    def sizes(self) -> dict[str, int]:
        """Return `event_files.sizes`, with the final sizes of its own files once all events are copied."""
        if not self.enabled:
            return {}
        own = {f"{kind}/{event_files.OWN}": file.end for kind, file in self._files.items()}
        return {**event_files.sizes(self.folder), **own}

    def copy(self, durable: bool = False) -> int:
        """Copy new events to the shared disk; return how many bytes. Can be called in any thread."""
        copied = 0
        for file in [*self._files.values()]:
            with self._complaining():
                copied += file.copy(durable)
        return copied

    def settle(self) -> None:
        """Copy and fsync all events before a checkpoint, which records the files' sizes."""
        self.copy(durable=True)

    def close(self) -> None:
        """Copy all events and close the files."""
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
            self._tell(_("TensorBoard's event files could not be written ({error}); training continues", error=error))

    def _tell(self, text: str) -> None:
        kind = text.split("(")[0]
        if kind not in self._warned_of:
            self._warned_of.add(kind)
            with suppress(OSError):
                print_error(text)


@contextmanager
def opened(context: Context, beside: Callable[[], object] | None = None) -> Iterator[SummaryWriter]:
    """Yield the SummaryWriter of a run, copied every `tensorboard.sync_seconds` and on exit, normal or not.

    `beside` is called as often, in the same thread.
    """
    settings = context.experiment.tensorboard
    enabled = settings.enabled and context.rank == 0 and _has_tensorboard()
    on_the_node = settings.node_local and context.experiment.cluster.scheduler == "slurm"
    writer = SummaryWriter(
        context.run.tensorboard, partitions.scratch_of(context.experiment) if on_the_node else None, enabled
    )

    def work() -> None:
        writer.copy()
        if beside:
            beside()

    thread = Every(settings.sync_seconds, work) if enabled and (on_the_node or beside) else None
    try:
        yield writer
    finally:
        if thread:
            thread.close()
        writer.close()


def _has_tensorboard() -> bool:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        print_error("TensorBoard's event files are not written ({error}); training continues", error=error)
        return False
    return True


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    RecordWriter(file).write(event.SerializeToString())
    return file.getvalue()
