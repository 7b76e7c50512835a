"""Who works on which trial: changes to a search's state, to be made inside a transaction.

`state["open"]` has an entry for each trial that was begun and not yet told:

| key | means |
|---|---|
| worker, start, token | who has it, and the number of its lease; worker is empty where it waits for anyone |
| retry | how often it was told as failed before |
| position, died, abandoned | where it ended without a word, how often by itself, and how often along with its worker |

A trial is told by the holder of its newest lease alone, so one whose worker only seemed dead is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# So many ends at the same step, one after the other, mean that the trial itself is at fault.
MOST_DEATHS = 3
# Those along with a worker say less: nodes fail too.
MOST_ABANDONED = 10
# Leased as a trial is, once all of them are told: writing the search's result.
RESULT = "result"

# How far a trial has come, by its id and retry: execution, epochs, steps.
PositionOf = Callable[[str, int], Sequence[int]]


@dataclass(frozen=True)
class Lease:
    """A worker's right to train a trial, and to tell of it."""

    trial: str
    token: int
    retry: int = 0


@dataclass(frozen=True)
class Worker:
    """One process of the search: `start` tells it from the one that had the same name before."""

    name: str
    start: str


def begin(state: dict[str, Any]) -> None:
    """The state of a search that has not begun."""
    state.update(open={}, tokens=0, finished=False, failed="")


def open_trial(state: dict[str, Any], trial: str, retry: int, worker: Worker) -> Lease:
    """Puts a new trial on record, leased to a worker."""
    state["open"][trial] = {"worker": "", "retry": retry, "position": None, "died": 0, "abandoned": 0}
    return _lease(state, trial, worker)


def take_waiting(state: dict[str, Any], worker: Worker) -> Lease | None:
    """Leases the trial that waits longest to a worker; None where none waits."""
    for trial, entry in state["open"].items():
        if not entry["worker"]:
            return _lease(state, trial, worker)
    return None


def _lease(state: dict[str, Any], trial: str, worker: Worker) -> Lease:
    state["tokens"] += 1
    state["open"][trial].update(worker=worker.name, start=worker.start, token=state["tokens"])
    return Lease(trial, state["tokens"], state["open"][trial]["retry"])


def holds(state: dict[str, Any], lease: Lease) -> bool:
    """Whether a lease is the newest of its trial."""
    entry = state["open"].get(lease.trial, {})
    return bool(entry.get("worker")) and entry.get("token") == lease.token


def give_back(state: dict[str, Any], lease: Lease) -> None:
    """Lets another have the trial; nothing where it was taken already."""
    if holds(state, lease):
        state["open"][lease.trial]["worker"] = ""


def close(state: dict[str, Any], lease: Lease) -> None:
    """Takes the trial off the record: it is told."""
    del state["open"][lease.trial]


def reap(state: dict[str, Any], worker: Worker, dead: Collection[str], position_of: PositionOf) -> list[str]:
    """Takes their trials from workers that are dead, and from this worker's own earlier starts; returns which."""
    taken = []
    for trial, entry in state["open"].items():
        if entry["worker"] in dead or (entry["worker"] == worker.name and entry["start"] != worker.start):
            entry["worker"] = ""
            _count(entry, position_of(trial, entry["retry"]), "abandoned")
            taken.append(trial)
    return taken


def died(state: dict[str, Any], lease: Lease, position_of: PositionOf) -> bool:
    """Counts an end of the trial's own without a word; True once there were too many at the same place."""
    entry = state["open"][lease.trial]
    _count(entry, position_of(lease.trial, lease.retry), "died")
    return hopeless(entry)


def hopeless(entry: Mapping[str, Any]) -> bool:
    """Whether a trial has ended too often at the same place."""
    return bool(entry["died"] >= MOST_DEATHS or entry["abandoned"] >= MOST_ABANDONED)


def _count(entry: dict[str, Any], position: Sequence[int], which: str) -> None:
    if entry["position"] != [*position]:
        entry.update(position=[*position], died=0, abandoned=0)
    entry[which] += 1
