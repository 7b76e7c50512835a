"""Write one curve of a run to an event file."""

from __future__ import annotations

import time
from pathlib import Path


class Curve:
    """The curve `epoch_loss` of a run; each point is in the file when `add` returns."""

    def __init__(self, events: Path, kind: str = "train") -> None:
        """`events` is the run's folder of event files."""
        folder = events / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.file = folder / f"events.out.tfevents.{time.time():017.6f}.test"
        self.write(file_version="brain.Event:2")

    def add(self, step: int, value: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.write(step=step, summary=Summary(value=[Summary.Value(tag="epoch_loss", simple_value=value)]))

    def write(self, **event: object) -> None:
        """Append any event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.file.open("ab") as file:
            RecordWriter(file).write(Event(wall_time=time.time(), **event).SerializeToString())
