"""The list of bad nodes: one JSON object per line, in the runs folder."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from truba_runner.nodes.fault import Fault

_NAME = ".bad_nodes.jsonl"


def record_bad(runs_folder: Path, shared: str, fault: Fault) -> frozenset[str]:
    """Add a fault and return the names of all nodes that are bad now, this one included; never raises OSError."""
    with suppress(OSError), (runs_folder / _NAME).open("a") as file:
        file.write(json.dumps(asdict(fault)) + "\n")
    return frozenset({fault.node, *_bad(runs_folder)})


def record_healthy(runs_folder: Path, shared: str, node: str) -> None:
    """End the entries of a node, if it has any."""
    if node in _bad(runs_folder):
        with suppress(OSError), (runs_folder / _NAME).open("a") as file:
            file.write(json.dumps({"node": node, "check": ""}) + "\n")


def _bad(runs_folder: Path) -> set[str]:
    bad: set[str] = set()
    with suppress(OSError, ValueError):
        for line in (runs_folder / _NAME).read_text().splitlines():
            record = json.loads(line)
            (bad.add if record["check"] else bad.discard)(record["node"])
    return bad
