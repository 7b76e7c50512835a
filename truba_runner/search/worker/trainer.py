"""Train a leased trial: each of its executions in a child process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NoReturn

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.events import Event
from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import leases, trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease
from truba_runner.search.state import Store
from truba_runner.training import backend, full_disk
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.nursery import Call, Nursery
from truba_runner.worker.failure import in_one_line

# Pause between an idle worker's looks for a new trial, and between any worker's looks for signals.
LOOK_SECONDS = 0.2
# Imports of an oracle step, after those of the trials' framework, which is Keras' backend too.
KERAS_TUNER = ("keras_tuner", "truba_runner.search.worker.steps")
# A starting trial may not handle a signal yet, so the signal is repeated.
_SIGNAL_AGAIN_SECONDS = 2.0


class Trainer:
    """Trainer of a worker's leased trials, one at a time."""

    def __init__(
        self,
        search: SearchDir,
        experiment: Experiment,
        store: Store,
        nursery: Nursery,
        interruption: Interruption,
        started: Event,
    ) -> None:
        """Take `started`, what a trial records of a start: `job_id` (the lease is appended), `worker` and the code."""
        self._search, self._experiment, self._store = search, experiment, store
        self._nursery, self._interruption, self._started = nursery, interruption, started
        self._position = partial(trials.position, search, experiment.sweep)
        self._lease: Lease | None = None
        self._lease_lost = threading.Event()

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Watch, while in this context, whether another worker takes the lease."""
        self._lease_lost.clear()
        self._lease = lease
        try:
            yield
        finally:
            self._lease = None

    def look_at_lease(self) -> None:
        """Check, in the heartbeat's thread, whether the lease was taken while this machine was stopped."""
        lease = self._lease
        with suppress(Failed, OSError):
            if lease is not None and not leases.holds(self._store.read(), lease):
                self._lease_lost.set()

    def leave(self, lease: Lease | None) -> NoReturn:
        """Give back the worker's lease, if it has one.

        Raises:
            truba_runner.training.interrupt.Interrupted: always.
        """
        if lease is not None:
            with self._store.transaction() as state:
                leases.give_back(state, lease)
        raise Interrupted

    def train(self, lease: Lease, failed_too_often: bool) -> dict[str, Any] | None:
        """Train all executions of a trial; return the outcome, or None if another worker has the trial now.

        Raises:
            truba_runner.training.interrupt.Interrupted: a signal came; the lease was given back.
            truba_runner.errors.Failed: something failed that is not the trial's fault, such as a full disk.
        """
        with self.holding(lease):
            if failed_too_often:
                return _outcome(
                    lease, "FAILED", _("it ended too often at the same step, each time together with its worker")
                )
            for execution in range(self._experiment.sweep.executions_per_trial):
                outcome = self._execute(lease, execution)
                if outcome is not None or self._lease_lost.is_set():
                    return outcome
            return _outcome(lease, "COMPLETED")

    def _execute(self, lease: Lease, execution: int) -> dict[str, Any] | None:
        """Train one run of a trial to its end; return None if it has a result or the lease is lost, else a failure."""
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
                _("trial {trial} ended without an error message, with {how}", trial=lease.trial, how=in_words(status)),
                flush=True,
            )
            with self._store.transaction() as state:
                if not leases.holds(state, lease):
                    return None
                if leases.died(state, lease, self._position):
                    why = _(
                        "it ended {count} times at the same step without an error message, with {how}",
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
            started=replace(self._started, job_id=self._name(lease)),
        )

    def _name(self, lease: Lease) -> str:
        return f"{self._started.job_id}.{lease.token}"

    def see_through(self, run: RunDir, lease: Lease) -> int:
        """Train a run in a child process; return its exit status."""
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
        """Wait for the child to exit; forward signals to it, and kill it if the lease is lost."""
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
    """Return the outcome of a trial that raised, with the error in its progress record.

    Raises:
        truba_runner.errors.Failed: the disk is full, which is not the trial's fault.
    """
    error = run.progress().error or ErrorRecord("Error", _("see {logs}", logs=run.logs))
    message = in_one_line(error)
    if full_disk.full_disk_words(message):
        raise Failed(
            "trial {trial} could not continue: {message}. Free some space, and give the same command again.",
            trial=lease.trial,
            message=message,
        )
    # Keras Tuner's status for a trial that may be retried, up to max_retries_per_trial times.
    return _outcome(lease, "INVALID", message)


def in_words(status: int) -> str:
    """Describe how a process has ended."""
    return (
        _("signal {name}", name=signal.Signals(-status).name)
        if status < 0
        else _("exit status {status}", status=status)
    )
