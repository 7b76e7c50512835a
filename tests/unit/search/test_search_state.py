"""A search's state under kills, full disks and mistakes; and who holds which trial."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from truba_runner.errors import Failed
from truba_runner.search import leases
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease, Worker
from truba_runner.search.state import Store
from truba_runner.search.worker.heartbeat import ALIVE, Heartbeat
from truba_runner.storage.shared_lock import lock_for

ME, OTHER = Worker("w0", "a"), Worker("w1", "b")


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    made = SearchDir(tmp_path / "search")
    made.create()
    return made


def store(search: SearchDir, kind: str = "fcntl", identity: str = "this") -> Store:
    return Store(search, lock_for(search.path, kind), identity)


def count(of: Store) -> None:
    with of.transaction() as state:
        state["count"] = state.get("count", 0) + 1


# -- the state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fcntl", "file"])
def test_a_kill_at_any_system_call_leaves_the_state_before_or_after(search: SearchDir, kind: str) -> None:
    count(store(search, kind))
    kills = 0
    while True:
        before = json.loads(search.state_file.read_text())["count"]
        if not killed_at_event(kills + 1, lambda: count(store(search))):
            break
        kills += 1
        assert json.loads(search.state_file.read_text())["count"] in (before, before + 1)
        # The next one is not held up, and loses nothing.
        after = json.loads(search.state_file.read_text())["count"]
        count(store(search))
        assert json.loads(search.state_file.read_text())["count"] == after + 1
    assert kills > 6


def killed_at_event(number: int, work: Any) -> bool:
    """Whether a process was killed at its number-th open, rename, link, removal or lock; it did `work` if not."""
    child = os.fork()
    if child == 0:
        seen = 0

        def audit(event: str, arguments: Any) -> None:
            nonlocal seen
            if event in {"open", "os.rename", "os.link", "os.remove", "fcntl.lockf", "os.mkdir"}:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_full_disk_leaves_the_state_as_it_was(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    count(store(search))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        count(store(search))
    monkeypatch.undo()
    count(store(search))
    assert store(search).read()["count"] == 2
    assert not [path for path in search.path.iterdir() if path.name.startswith(".state")]


def test_an_exception_changes_nothing(search: SearchDir) -> None:
    count(store(search))
    with pytest.raises(KeyError), store(search).transaction() as state:
        state["count"] = 99
        raise KeyError("in the middle")
    assert store(search).read()["count"] == 1


def test_what_was_not_changed_is_not_written(search: SearchDir) -> None:
    count(store(search))
    stamp = store(search).stamp()
    with store(search).transaction():
        pass
    assert store(search).stamp() == stamp
    count(store(search))
    assert store(search).stamp() != stamp


def test_another_searchs_state_is_refused(search: SearchDir) -> None:
    count(store(search))
    with pytest.raises(Failed, match="another search"), store(search, identity="that").transaction():
        pass
    assert store(search).read()["count"] == 1


@pytest.mark.parametrize("text", ['{"format": 1, "ident', "[]", '{"format": 99, "identity": "this"}'])
def test_a_state_that_cannot_be_read_is_told_of(search: SearchDir, text: str) -> None:
    search.state_file.write_text(text)
    with pytest.raises(Failed, match="fresh=true"):
        store(search).read()


def test_nothing_is_written_once_the_lock_is_lost(search: SearchDir) -> None:
    count(store(search, "file"))
    with pytest.raises(Failed, match="was suspended"), store(search).transaction() as state:
        state["count"] = 99
        (search.path / "lock.owner").unlink()
    assert store(search).read()["count"] == 1


# -- leases --------------------------------------------------------------------------------------------------------


def begun(*trials: str) -> dict[str, Any]:
    state: dict[str, Any] = {}
    leases.begin(state)
    for trial in trials:
        leases.open_trial(state, trial, 0, ME)
    return state


def nowhere(trial: str, retry: int) -> list[int]:
    return [0, 0, 0]


def test_a_trial_is_one_workers() -> None:
    state = begun()
    lease = leases.open_trial(state, "0", 2, ME)
    assert lease == Lease("0", 1, 2) and leases.holds(state, lease)
    assert leases.take_waiting(state, OTHER) is None
    leases.give_back(state, lease)
    taken = leases.take_waiting(state, OTHER)
    assert taken is not None and leases.holds(state, taken) and not leases.holds(state, lease)


def test_who_has_lost_a_trial_neither_tells_it_nor_gives_it_back() -> None:
    state = begun()
    slow = leases.open_trial(state, "0", 0, ME)
    assert leases.reap(state, OTHER, {"w0"}, nowhere) == ["0"]
    taken = leases.take_waiting(state, OTHER)
    leases.give_back(state, slow)
    assert taken is not None and leases.holds(state, taken) and not leases.holds(state, slow)
    leases.close(state, taken)
    assert not leases.holds(state, taken) and not leases.holds(state, slow)


def test_a_worker_that_starts_again_has_its_trial_back_at_once() -> None:
    state = begun("0", "1")
    again = Worker(ME.name, "another start")
    assert leases.reap(state, again, set(), nowhere) == ["0", "1"]
    assert leases.reap(state, ME, set(), nowhere) == []


def test_a_trial_that_dies_at_the_same_step_again_and_again_is_given_up() -> None:
    state = begun()
    lease = leases.open_trial(state, "0", 0, ME)
    places = iter([[0, 1, 0], [0, 1, 0], [0, 2, 0], [0, 2, 0], [0, 2, 0]])
    assert [leases.died(state, lease, lambda trial, retry: next(places)) for _ in range(5)] == [False] * 4 + [True]


def test_the_death_of_workers_says_less_of_a_trial_than_its_own() -> None:
    state = begun("0")
    for _ in range(leases.MOST_ABANDONED):
        assert not leases.failed_too_often(state["open"]["0"])
        leases.reap(state, OTHER, {"w0"}, nowhere)
        leases._lease(state, "0", ME)
    assert leases.failed_too_often(state["open"]["0"])


def test_a_worker_that_stood_still_takes_nobody_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("me", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ALIVE).touch()
    with Heartbeat(tmp_path / "me", 1000) as heartbeat:
        later = time.monotonic() + 5000
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert heartbeat.dead() == set()
        for _ in range(3):  # Nor is the other if it could not write meanwhile either.
            heartbeat._watch()
            assert heartbeat.dead() == set()
        heartbeat._watch()
        assert heartbeat.dead() == {"other"}


def test_a_worker_without_a_sign_of_life_is_dead_and_one_with_is_not(tmp_path: Path) -> None:
    for name in ("me", "silent", "lively"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ALIVE).touch()
    # The file's time may be of another's clock.
    os.utime(tmp_path / "silent" / ALIVE, (2e9, 2e9))
    # Each goes on when both have beaten, whatever else this machine has to do.
    both, looks = threading.Barrier(2), itertools.count(1)
    enough = threading.Event()

    def beaten() -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(240)

    def looked() -> None:
        if next(looks) == 12:
            enough.set()
        beaten()

    with Heartbeat(tmp_path / "me", 0.1, looked) as heartbeat, Heartbeat(tmp_path / "lively", 0.1, beaten):
        try:
            assert heartbeat.dead() == set()
            assert enough.wait(240) and heartbeat.dead() == {"silent"}
        finally:
            both.abort()
