"""Reads TensorBoard's event files without a framework."""

from __future__ import annotations

import struct
from pathlib import Path


def curves(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Steps and values of each curve of a run, in the order in which they were written, by folder and tag."""
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for file in sorted((folder / "tensorboard").rglob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault((file.parent.name, value.tag), []).append((event.step, value.simple_value))
    return found
