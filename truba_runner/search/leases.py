"""Leases of trials to workers: changes to a search's state, made inside a transaction.

`state["open"]` has an entry for each trial that was begun and has not finished:

| key | means |
|---|---|
| worker, start, token | the worker, its start, and the lease's number; worker is empty if the trial waits for one |
| retry | how often the trial was reported as failed before |
| position, died, abandoned | where it crashed without an error, how often alone, and how often with its worker |

Only the holder of a trial's newest lease may report it, so a trial is reported once even if its worker seemed dead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# After this many consecutive crashes at one step, the trial itself is at fault.
MOST_DEATHS = 3
# The same limit for crashes together with the worker, which say less: nodes fail too.
MOST_ABANDONED = 10
# The task of writing the search's result, leased like a trial once all trials have finished.
RESULT = "result"

# Returns how far a trial has come, by its id and retry: finished executions, epochs, steps.
PositionOf = Callable[[str, int], Sequence[int]]


@dataclass(frozen=True)
class Lease:
    """A worker's right to train a trial, and to report it."""

    trial: str
    token: int
    retry: int = 0


@dataclass(frozen=True)
class Worker:
    """One process of the search; `start` distinguishes it from earlier processes of the same name."""

    name: str
    start: str


def begin(state: dict[str, Any]) -> None:
    """Fill in the lease fields of a new search's state."""
    state.update(open={}, tokens=0, finished=False, failed="")


def open_trial(state: dict[str, Any], trial: str, retry: int, worker: Worker) -> Lease:
    """Record a new trial and lease it to a worker."""
    state["open"][trial] = {"worker": "", "retry": retry, "position": None, "died": 0, "abandoned": 0}
    return _lease(state, trial, worker)


def take_waiting(state: dict[str, Any], worker: Worker) -> Lease | None:
    """Lease the trial that was opened first, of those that wait, to a worker; None if none waits."""
    for trial, entry in state["open"].items():
        if not entry["worker"]:
            return _lease(state, trial, worker)
    return None


def _lease(state: dict[str, Any], trial: str, worker: Worker) -> Lease:
    state["tokens"] += 1
    state["open"][trial].update(worker=worker.name, start=worker.start, token=state["tokens"])
    return Lease(trial, state["tokens"], state["open"][trial]["retry"])


def holds(state: dict[str, Any], lease: Lease) -> bool:
    """Whether a lease is still valid: the newest of its trial, and not given back."""
    entry = state["open"].get(lease.trial, {})
    return bool(entry.get("worker")) and entry.get("token") == lease.token


def give_back(state: dict[str, Any], lease: Lease) -> None:
    """Release the trial for other workers; do nothing if another has it already."""
    if holds(state, lease):
        state["open"][lease.trial]["worker"] = ""


def close(state: dict[str, Any], lease: Lease) -> None:
    """Remove a reported trial from the open trials."""
    del state["open"][lease.trial]


def reap(state: dict[str, Any], worker: Worker, dead: Collection[str], position_of: PositionOf) -> list[str]:
    """Release trials of dead workers and of this worker's earlier starts; return their ids."""
    taken = []
    for trial, entry in state["open"].items():
        if entry["worker"] in dead or (entry["worker"] == worker.name and entry["start"] != worker.start):
            entry["worker"] = ""
            _count(entry, position_of(trial, entry["retry"]), "abandoned")
            taken.append(trial)
    return taken


def died(state: dict[str, Any], lease: Lease, position_of: PositionOf) -> bool:
    """Count a crash of a trial whose worker lives; return whether it has crashed too often at one position."""
    entry = state["open"][lease.trial]
    _count(entry, position_of(lease.trial, lease.retry), "died")
    return failed_too_often(entry)


def failed_too_often(entry: Mapping[str, Any]) -> bool:
    """Whether a trial has crashed too often at one position."""
    return bool(entry["died"] >= MOST_DEATHS or entry["abandoned"] >= MOST_ABANDONED)


def _count(entry: dict[str, Any], position: Sequence[int], which: str) -> None:
    if entry["position"] != [*position]:
        entry.update(position=[*position], died=0, abandoned=0)
    entry[which] += 1
