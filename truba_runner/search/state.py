"""A search's state: one JSON file, changed in transactions under the search's lock.

| key | holds |
|---|---|
| format, identity | version of the file format, and hash of the search's config |
| oracle, trials | Keras Tuner's own state, and its trials by id |
| open | trials that were begun and have not finished, by id: see `leases` |
| tokens | how many leases there were |
| finished, failed | whether no trial is left; why the search was given up |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.errors import Failed
from truba_runner.runs.record_files import read_object
from truba_runner.runs.record_shapes import Damaged
from truba_runner.search.directory import SearchDir
from truba_runner.storage.files import write_atomically
from truba_runner.storage.shared_lock import Lock

FORMAT = 1

State = dict[str, Any]


class Store:
    """Reader and writer of one search's state."""

    def __init__(self, search: SearchDir, lock: Lock, identity: str) -> None:
        """Take the `identity` that the state must have: that of the caller's search."""
        self._search, self._lock, self._identity = search, lock, identity

    def read(self) -> State:
        """Return the current state; empty if none was written yet.

        Raises:
            truba_runner.errors.Failed: the state is another search's, or damaged.
        """
        state = read_state(self._search)
        if state and state["identity"] != self._identity:
            raise Failed(
                "{folder} holds the state of another search ({other}; this one is {identity}): its search space, "
                "its objective or the experiment differs. Choose another directory with sweep.directory=NAME, or "
                "start a new search with fresh=true (the old one is kept).",
                folder=self._search.path,
                other=state["identity"],
                identity=self._identity,
            )
        return state

    @contextmanager
    def transaction(self) -> Iterator[State]:
        """Yield the state, to be changed in place; write it at the end if it has changed and nothing was raised.

        Raises:
            truba_runner.errors.Failed: as `read`; or the lock was broken while this process was stopped.
            OSError: the disk is full or not writable; the state is unchanged.
        """
        with self._lock as lock:
            state = self.read()
            before = _text(state)
            yield state
            if before == _text(state):
                return
            content = _text({"format": FORMAT, "identity": self._identity, **state})
            if not lock.held():
                raise Failed(
                    "another process broke the lock of {folder}: this process was suspended for too long",
                    folder=self._search.path,
                )
            write_atomically(self._search.state_file, content.encode())

    def stamp(self) -> tuple[int, int]:
        """Return the state file's inode and mtime (ns), which change with the state; zeros if there is none."""
        try:
            found = os.stat(self._search.state_file)
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns


def _text(state: State) -> str:
    return json.dumps(state, ensure_ascii=False)


def read_state(search: SearchDir) -> State:
    """Return a search's state, without checking its identity; empty if none was written yet.

    Raises:
        truba_runner.errors.Failed: the state is damaged, or another version's.
    """
    try:
        state = read_object(search.path, search.state_file.name, lambda state: "")
    except Damaged as error:
        raise Failed(
            "{file} is damaged ({error}); start a new search with fresh=true (the old one is kept)",
            file=search.state_file,
            error=error,
        ) from error
    if state and state.get("format") != FORMAT:
        raise Failed(
            "{file} was written by another version of truba_runner; start a new search with fresh=true",
            file=search.state_file,
        )
    return state
