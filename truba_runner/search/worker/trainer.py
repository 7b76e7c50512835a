"""A trial from its lease to what came of it: each of its executions is trained in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import leases, trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease
from truba_runner.search.state import Store
from truba_runner.training import backend, full_disk
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.nursery import Call, Nursery
from truba_runner.worker.failure import in_one_line

# How often a worker without a trial looks whether there is one, and any looks for signals.
LOOK_SECONDS = 0.2
# The oracle's steps; Keras is imported with whatever the trials are trained with.
KERAS_TUNER = ("keras_tuner", "truba_runner.search.worker.steps")
# A trial may not listen yet when a signal comes, so it is told again.
_SIGNAL_AGAIN_SECONDS = 2.0


class Trainer:
    """Trains what its worker has on lease, one at a time."""

    def __init__(
        self,
        search: SearchDir,
        experiment: Experiment,
        store: Store,
        nursery: Nursery,
        interruption: Interruption,
        started: Mapping[str, Any],
    ) -> None:
        """`started`: what a trial's record says of a start besides its lease: `job_id`, `worker` and the code."""
        self._search, self._experiment, self._store = search, experiment, store
        self._nursery, self._interruption, self._started = nursery, interruption, started
        self._position = partial(trials.position, search, experiment.sweep)
        self._lease: Lease | None = None
        self._lease_lost = threading.Event()

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """In here the worker looks whether the lease is taken from it."""
        self._lease_lost.clear()
        self._lease = lease
        try:
            yield
        finally:
            self._lease = None

    def look_at_lease(self) -> None:
        """In the pulse's thread: whether the lease was taken while this machine stood still."""
        lease = self._lease
        with suppress(Failed, OSError):
            if lease is not None and not leases.holds(self._store.read(), lease):
                self._lease_lost.set()

    def leave(self, lease: Lease | None) -> NoReturn:
        """Gives back what the worker has.

        Raises:
            Interrupted: always.
        """
        if lease is not None:
            with self._store.transaction() as state:
                leases.give_back(state, lease)
        raise Interrupted

    def train(self, lease: Lease, hopeless: bool) -> dict[str, Any] | None:
        """Trains all executions of a trial; what came of it, or None where another has it now.

        Raises:
            Interrupted: it was asked for, and another may have the trial.
            truba_runner.errors.Failed: something is wrong that is no fault of the trial's.
        """
        with self.holding(lease):
            if hopeless:
                return _outcome(lease, "FAILED", _("it ended too often at the same step, along with its worker"))
            for execution in range(self._experiment.sweep.executions_per_trial):
                outcome = self._execute(lease, execution)
                if outcome is not None or self._lease_lost.is_set():
                    return outcome
            return _outcome(lease, "COMPLETED")

    def _execute(self, lease: Lease, execution: int) -> dict[str, Any] | None:
        """Trains one run of a trial to its end; None if it has its result or the lease is lost, else what is wrong."""
        while True:
            run = self._prepare(lease, execution)
            status = 0 if run.result() else self.see_through(run, lease)
            if run.result() or self._lease_lost.is_set():
                return None
            if self._interruption.requested:
                self.leave(lease)
            if status == 1:
                return _failure(run, lease)
            print(
                _("trial {trial} ended without a word, with {how}", trial=lease.trial, how=in_words(status)), flush=True
            )
            with self._store.transaction() as state:
                if not leases.holds(state, lease):
                    return None
                if leases.died(state, lease, self._position):
                    why = _(
                        "it ended {count} times at the same step without a word, with {how}",
                        count=leases.MOST_DEATHS,
                        how=in_words(status),
                    )
                    return _outcome(lease, "FAILED", why)

    def _prepare(self, lease: Lease, execution: int) -> RunDir:
        state = self._store.read()
        return trials.prepare(
            self._search,
            self._experiment,
            state["trials"],
            lease.trial,
            retry=lease.retry,
            execution=execution,
            direction=state["objective"]["direction"],
            started={**self._started, "job_id": self._name(lease)},
        )

    def _name(self, lease: Lease) -> str:
        return f"{self._started['job_id']}.{lease.token}"

    def see_through(self, run: RunDir, lease: Lease) -> int:
        """Trains a run in a process of its own; returns its exit status."""
        environment = {"TRUBA_JOB_ID": self._name(lease), "TRUBA_JOB_NAME": f"{run.id}.{self._name(lease)}"}
        imports = backend.imports(self._experiment.job.backend)
        # A search without a framework has no use for Keras in its trials.
        imports = (*imports, *(KERAS_TUNER if imports else ()), "truba_runner.worker.run")
        log = str(run.logs / "trial_0_log.out")
        process = self._nursery.start(
            Call("truba_runner.worker.run", "main", [[str(run.path)]], imports, environment, log)
        )
        return self._await(process)

    def _await(self, process: int) -> int:
        """Until a process has ended; what this worker is told meanwhile it is told too."""
        since = _SIGNAL_AGAIN_SECONDS
        while (ended := self._nursery.ended(LOOK_SECONDS)) is None:
            since += LOOK_SECONDS
            with suppress(ProcessLookupError):
                if self._lease_lost.is_set():
                    print(_("another worker has taken the trial: this one seemed dead"), flush=True)
                    os.kill(process, signal.SIGKILL)
                elif self._interruption.requested and since >= _SIGNAL_AGAIN_SECONDS:
                    since = 0.0
                    os.kill(process, signal.SIGUSR2 if self._interruption.requeue else signal.SIGTERM)
        return int(ended["status"])


def _outcome(lease: Lease, status: str, message: str = "") -> dict[str, Any]:
    return {"lease": asdict(lease), "status": status, "message": message}


def _failure(run: RunDir, lease: Lease) -> dict[str, Any]:
    """What its own record says of a trial that raised.

    Raises:
        truba_runner.errors.Failed: it is no fault of the trial's.
    """
    error = run.progress().get("error") or {"type": "Error", "message": _("see {logs}", logs=run.logs)}
    message = in_one_line(error)
    if full_disk.told_of(message):
        raise Failed(
            _(
                "trial {trial} could not go on: {message}. Make room, and give the same command again.",
                trial=lease.trial,
                message=message,
            )
        )
    # Keras Tuner's word for a trial that may be tried again, if max_retries_per_trial says so.
    return _outcome(lease, "INVALID", message)


def in_words(status: int) -> str:
    """How a process has ended."""
    return (
        _("signal {name}", name=signal.Signals(-status).name)
        if status < 0
        else _("exit status {status}", status=status)
    )
