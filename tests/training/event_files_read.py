"""Read TensorBoard's event files without a framework."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tags whose values differ between starts.
TIMED = {"examples_per_second", "steps_per_second"}

ACCUMULATE = """
import json, sys
sys.modules["tensorflow"] = None  # TensorBoard takes its own reader then, and does not wait for an import.
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for kind in sys.argv[2:]:
    read = EventAccumulator(sys.argv[1] + "/" + kind, size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()
    for tag in read.Tags()["scalars"]:
        found[kind + "/" + tag] = [event.step for event in read.Scalars(tag)]
print(json.dumps(found))
"""


def told(folder: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield every summary value of a run with its folder and step, in the order in which they were written."""
    from tensorboard.compat.proto.event_pb2 import Event

    for file in sorted((folder / "tensorboard").rglob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                if value.tag in TIMED:
                    assert value.simple_value > 0
                    value.simple_value = 0
                yield file.parent.name, event.step, value


def curves(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return (step, value) pairs of each curve of a run by folder and tag, in the order in which they were written."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for kind, step, value in told(folder):
        found.setdefault((kind, value.tag), []).append((step, value.simple_value))
    return found


def seen(folder: Path) -> dict[str, list[int]]:
    """Return the steps of each curve of a run as TensorBoard's own EventAccumulator reads them, by `train/TAG`."""
    kinds = [path.name for path in (folder / "tensorboard").iterdir() if path.is_dir()]
    command = [sys.executable, "-c", ACCUMULATE, str(folder / "tensorboard"), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found
