"""The list of bad nodes: a file beside the runs, and one that colleagues may share.

RUNS/.nodes/bad.jsonl  one fact per line: a node was bad, was healthy, or was taken off the list by the user

A node is bad from a fault on until it was healthy, was taken off, or the fault is too old. The facts of both files
count together: a healthy start that a colleague's job has recorded ends the node's earlier faults here too.

The shared file is written by several users, and any line may hold anything, so only valid facts are read. It is locked
itself, as only its owner could lock a file beside it, and compacted in place, as a new file would lose its group.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.errors import Refused
from truba_runner.nodes.fault import Fault
from truba_runner.runs import record_shapes
from truba_runner.storage import private, safe_files

# In the runs folder.
NODES = ".nodes"
DAYS = 7.0
DAY_SECONDS = 86_400
BAD, HEALTHY, FORGOTTEN = "bad", "healthy", "forgotten"
# As Slurm names nodes; a comma, bracket or slash would change the meaning of --exclude.
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_MOST_MESSAGE = 500
# A longer file is compacted when it is written; only this much of its end is ever read.
_LONG_BYTES, _MOST_BYTES = 1 << 16, 1 << 20
# What is left of it: this many faults of a node, and facts at least as young, as colleagues may keep them longer.
_KEPT_FAULTS, _KEPT_DAYS = 10, 30.0
# A job that leaves a node, and a submission, wait this long for the lock, then do without.
_WRITE_SECONDS, _READ_SECONDS = 5.0, 1.0
# The clock of a node may be ahead. A later fact would never grow too old.
_AHEAD_SECONDS = 3600.0


@dataclass(frozen=True)
class BadNode:
    """A node that is bad now."""

    node: str
    # Oldest first.
    faults: Sequence[Fault]
    # The files that have them.
    files: Sequence[Path]

    @property
    def first(self) -> float:
        """When its first fault was recorded, in seconds since 1970."""
        return self.faults[0].time

    @property
    def last(self) -> Fault:
        """Its newest fault."""
        return self.faults[-1]

    @property
    def why(self) -> str:
        """What was wrong with it last."""
        return f"{self.last.check}: {self.last.message}"

    def until(self, days: float) -> float:
        """Return when it will be left out no longer, in seconds since 1970."""
        return self.last.time + days * DAY_SECONDS


@dataclass(frozen=True)
class _Fact:
    kind: str
    fault: Fault

    def line(self) -> str:
        return json.dumps({"event": self.kind, **vars(self.fault)}, ensure_ascii=False)


def record_bad(runs_folder: Path, shared: str, fault: Fault, days: float = DAYS) -> frozenset[str]:
    """Append a fault to the list, and to the `shared` file if it is not empty; return the names of all bad nodes.

    A file that cannot be written is left as it is: a full disk must not keep a job from leaving the node.
    """
    for file in _files(runs_folder, shared):
        with suppress(OSError, Refused):
            _append(file, _Fact(BAD, fault), days)
    return frozenset({fault.node, *(entry.node for entry in bad_nodes(runs_folder, shared, days))})


def record_healthy(runs_folder: Path, shared: str, node: str) -> None:
    """Record a healthy start on a node if it is on the list; a file that cannot be written is left as it is."""
    with suppress(OSError, Refused):
        _end(runs_folder, shared, node, HEALTHY)


def forget(runs_folder: Path, shared: str, node: str) -> bool:
    """Take a node off the list; return whether it was on it.

    Raises:
        truba_runner.errors.Refused: another user owns the list, or can write to its folder.
        OSError: the list of this runs folder cannot be written.
    """
    return _end(runs_folder, shared, node, FORGOTTEN)


def bad_nodes(runs_folder: Path, shared: str, days: float) -> list[BadNode]:
    """Return the nodes that are bad now, by name; a fault counts for `days`. An unreadable file is empty."""
    since = time.time() - days * DAY_SECONDS
    faults_by_node: dict[str, dict[Fault, list[Path]]] = {}
    facts = [(fact, file) for file in _files(runs_folder, shared) for fact in _read(file)]
    for fact, file in sorted(facts, key=lambda pair: pair[0].fault.time):
        if fact.kind != BAD:
            faults_by_node.pop(fact.fault.node, None)
        elif fact.fault.time > since:
            faults_by_node.setdefault(fact.fault.node, {}).setdefault(fact.fault, []).append(file)
    return [
        BadNode(node, tuple(faults), tuple(dict.fromkeys(file for files in faults.values() for file in files)))
        for node, faults in sorted(faults_by_node.items())
    ]


def _files(runs_folder: Path, shared: str) -> list[Path]:
    return [runs_folder / NODES / "bad.jsonl", *([Path(shared)] if shared else [])]


def _end(runs_folder: Path, shared: str, node: str, kind: str) -> bool:
    # However old its faults are: colleagues may keep them longer.
    bad = [entry for entry in bad_nodes(runs_folder, shared, math.inf) if entry.node == node]
    # Not before its last fault, whose node may have another clock.
    fact = _Fact(kind, Fault(node, "", "", max([time.time(), *(entry.last.time + 1e-3 for entry in bad)])))
    own, *shared_files = _files(runs_folder, shared)
    if bad:
        # It counts for this user even if the fault is in a list that only others can write.
        _append(own, fact, DAYS)
    for file in (file for entry in bad for file in shared_files if file in entry.files):
        with suppress(OSError):
            _append(file, fact, DAYS)
    return bool(bad)


# -- files -----------------------------------------------------------------------------------------------------


def _append(file: Path, fact: _Fact, days: float) -> None:
    """Append a fact, after a line that a full disk has cut in half too, and compact a long file.

    Raises:
        truba_runner.errors.Refused: another user owns the list of this runs folder, or can write to its folder.
        OSError: the file cannot be written.
    """
    own = file.parent.name == NODES
    if own:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        private.require_own(file.parent)
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(file, flags)
    except FileNotFoundError:  # Linux refuses O_CREAT for another user's file in a folder with a sticky bit.
        handle = os.open(file, flags | os.O_CREAT, 0o600 if own else 0o660)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return
        _lock(handle, fcntl.LOCK_EX, _WRITE_SECONDS)
        size = os.fstat(handle).st_size
        cut = size and os.pread(handle, 1, size - 1) != b"\n"
        _write(handle, ["\n" * bool(cut) + fact.line()])
        if size > _LONG_BYTES:
            kept = _compacted(_facts(_tail(handle)), max(days, _KEPT_DAYS))
            # The disk has room for them: truncating frees more than they take.
            os.ftruncate(handle, 0)
            _write(handle, [kept_fact.line() for kept_fact in kept])
    finally:
        os.close(handle)


def _write(handle: int, lines: Iterable[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    while content:  # A disk that fills up writes a part, and raises at the next write.
        content = content[os.write(handle, content) :]


def _compacted(facts: Iterable[_Fact], days: float) -> list[_Fact]:
    """Return the facts that still count: of each node its newest faults, or that they have ended."""
    since = time.time() - days * DAY_SECONDS
    kept: dict[str, list[_Fact]] = {}
    for fact in sorted(facts, key=lambda fact: fact.fault.time):
        if fact.fault.time > since:
            faults = [entry for entry in kept.get(fact.fault.node, []) if entry.kind == fact.kind == BAD]
            kept[fact.fault.node] = [*faults[1 - _KEPT_FAULTS :], fact]
    return [fact for facts in kept.values() for fact in facts]


def _read(file: Path) -> list[_Fact]:
    try:
        handle = safe_files.opened(file, file.parent)
    except OSError:
        return []
    try:
        _lock(handle, fcntl.LOCK_SH, _READ_SECONDS)  # Not while it is compacted.
        return list(_facts(_tail(handle)))
    except OSError:
        return []
    finally:
        os.close(handle)


def _tail(handle: int) -> str:
    return os.pread(handle, _MOST_BYTES, max(0, os.fstat(handle).st_size - _MOST_BYTES)).decode(errors="replace")


def _lock(handle: int, how: int, seconds: float) -> None:
    """Lock an open file, if that succeeds in time, until it is closed.

    Without a lock (a file system may have none, and whoever can read the file can hold one) the list is still used: a
    line is appended whole.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(handle, how | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        except OSError:
            return


# -- facts -----------------------------------------------------------------------------------------------------


def _is_node(value: Any) -> bool:
    return isinstance(value, str) and _NODE.fullmatch(value) is not None


_CHECKS: Mapping[str, record_shapes.Check] = {
    "event": lambda value: value in (BAD, HEALTHY, FORGOTTEN),
    "node": _is_node,
    "check": record_shapes.is_text,
    "message": record_shapes.is_text,
    "time": record_shapes.is_moment,
}


def _facts(text: str) -> Iterator[_Fact]:
    """Yield the facts in the lines that hold one; other lines are cut short, or another version's."""
    latest = time.time() + _AHEAD_SECONDS
    for line in text.split("\n"):
        try:
            record = record_shapes.parsed(line, "")
        except record_shapes.Damaged:
            continue
        if not isinstance(record, dict) or record_shapes.wrong(record, list(_CHECKS), _CHECKS):
            continue
        if record["time"] < latest:
            message = record["message"][:_MOST_MESSAGE]
            yield _Fact(record["event"], Fault(record["node"], record["check"][:60], message, record["time"]))
