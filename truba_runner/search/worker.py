"""A worker of a search: `python -m truba_runner.search.worker WORKER_DIR` trains one trial after the other.

Workers know of each other only through the search's directory. Any of them may come, be interrupted or be killed at any
moment; what it was at goes to another, which resumes it from its checkpoint. The last one writes the result.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from truba_runner import allocation, backends, notify
from truba_runner import worker as ordinary
from truba_runner.checkpoint import Position
from truba_runner.config import Experiment, experiment_from, training_hash
from truba_runner.errors import Failed
from truba_runner.interrupt import Interrupted, Interruption
from truba_runner.progress import Progress
from truba_runner.rundir import RunDir
from truba_runner.search import leases, lock, trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.ending import conclude
from truba_runner.search.leases import Lease, Worker
from truba_runner.search.nursery import Call, Nursery
from truba_runner.search.pulse import Pulse
from truba_runner.search.records import values_of
from truba_runner.search.steps import describe
from truba_runner.search.store import Store

# How often a worker without a trial looks whether there is one, and any looks for signals.
_LOOK_SECONDS = 0.2
# A trial may not listen yet when a signal comes, so it is told again.
_SIGNAL_AGAIN_SECONDS = 2.0
# Of a step of the oracle that is killed.
_ATTEMPTS = 3
_DISK_IS_FULL = ("[Errno 28]", "[Errno 122]")
# The oracle's steps; Keras is imported with whatever the trials are trained with.
_KERAS_TUNER = ("keras_tuner", "truba_runner.search.steps")


def main(arguments: list[str]) -> int:
    """Works on the search that the folder `arguments[0]` belongs to; exit status as of `truba_runner.worker`."""
    run = RunDir(Path(arguments[0]).resolve())
    search = SearchDir(run.path.parent.parent)
    here = allocation.current()
    interruption = Interruption()
    interruption.listen()
    progress = Progress(run, here.job_id)
    try:
        interruption.hold()
        os.chdir(run.path)
        experiment = experiment_from(search.read_config())
        lock.check(search.path)
        store = Store(search, lock.lock_for(search.path, experiment.sweep.lock), training_hash(experiment))
        leases_so_far = int(store.read().get("tokens", 0))
        if not ordinary.begin(run, here, Position(leases_so_far, 0)):
            return 0
        progress.update()
        print(f"search {search.id}, worker {run.id}, job {here.job_id}, on {platform.node()}", flush=True)
        _SearchWorker(search, run, experiment, store, interruption, progress, here.job_id).work()
        progress.update(state="finished")
    except Interrupted:
        return ordinary.after_interruption(run, here, progress, interruption)
    except BaseException as error:
        return ordinary.failed(run, here, progress, error)
    return 0


class _SearchWorker:
    """The loop of one worker."""

    def __init__(
        self,
        search: SearchDir,
        run: RunDir,
        experiment: Experiment,
        store: Store,
        interruption: Interruption,
        progress: Progress,
        job_id: str,
    ) -> None:
        self._search, self._run, self._experiment, self._store = search, run, experiment, store
        self._interruption, self._progress, self._job_id = interruption, progress, job_id
        self._about = describe(experiment)
        self._me = Worker(run.id, secrets.token_hex(4))
        self._submitted = ordinary.submitted(run)
        # Keras Tuner needs Keras, and Keras a backend: that which is imported anyway.
        backend = "torch" if experiment.job.backend == "fastai" else "tensorflow"
        self._nursery = Nursery({"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "1"})
        self._lease: Lease | None = None
        self._lease_lost = threading.Event()

    def work(self) -> None:
        """Until no trial is left.

        Raises:
            Interrupted: it was asked for, and what it was at can be taken up by another.
            truba_runner.errors.Failed: the search cannot go on.
        """
        pulse = Pulse(self._run.path, self._experiment.sweep.lease_seconds, self._look_at_lease)
        try:
            with pulse:
                self._work(pulse)
        finally:
            self._nursery.close()

    def _work(self, pulse: Pulse) -> None:
        if not self._store.read():
            self._step("begin", self._submitted["job_file"])
        outcome: dict[str, Any] | None = None
        while True:
            answer = self._next(outcome, pulse)
            if "told" in answer:
                print(answer["told"], flush=True)
            if answer.get("failed"):
                raise Failed(f"the search was given up: {answer['failed']}")
            if self._interruption.requested:
                self._leave(answer)
            if answer.get("finished"):
                break
            outcome = None
            if "lease" in answer:
                outcome = self._train(answer)
            else:
                self._wait(pulse)
        self._conclude(pulse)

    # -- the oracle ----------------------------------------------------------------------------------------------

    def _next(self, outcome: dict[str, Any] | None, pulse: Pulse) -> dict[str, Any]:
        """Tells what came of a trial, and takes the next: one that waits, or a new one."""
        if outcome is None and not self._interruption.requested and (taken := self._take_waiting(pulse)):
            return taken
        if outcome is None and self._interruption.requested:
            return {}
        ask = not self._interruption.requested
        return self._step("step", sorted(pulse.dead()), outcome, ask)

    def _take_waiting(self, pulse: Pulse) -> dict[str, Any]:
        """A trial that another worker has left, without asking the oracle."""
        with self._store.transaction() as state:
            if state["finished"] or state["failed"]:
                return {"finished": state["finished"], "failed": state["failed"]}
            for trial in leases.reap(state, self._me, pulse.dead(), self._position):
                print(f"trial {trial}: its worker has died, another goes on with it", flush=True)
            lease = leases.take_waiting(state, self._me)
            if lease is None:
                return {}
            values = values_of(state["trials"][lease.trial])
            hopeless = leases.hopeless(state["open"][lease.trial])
            return {"lease": [lease.trial, lease.token, lease.retry], "values": values, "hopeless": hopeless}

    def _step(self, function: str, *arguments: Any) -> dict[str, Any]:
        """Asks the oracle, in a process of its own; again where that was killed."""
        imports = (*backends.imports(self._experiment.job.backend), *_KERAS_TUNER)
        for _ in range(_ATTEMPTS):
            given = [str(self._search.path), self._about, [self._me.name, self._me.start], *arguments]
            self._nursery.start(Call("truba_runner.search.steps", function, given, imports))
            while (ended := self._nursery.ended(60)) is None:
                pass
            if ended["status"] == 0:
                return dict(ended["value"])
            if ended["status"] > 0:
                told = ended["value"] or {}
                raise Failed(told.get("failed", "the search's oracle could not be asked; the lines above show why"))
            print(f"a step of the oracle ended with {_in_words(ended['status'])}, and is made again", flush=True)
            # It may have leased a trial and not said so: what this worker has by its old name is anyone's.
            self._me = Worker(self._me.name, secrets.token_hex(4))
        raise Failed("the search's oracle could not be asked: it was killed again and again")

    def _position(self, trial: str, retry: int) -> list[int]:
        if trial == leases.RESULT:
            return [0, 0, 0]
        return trials.position(self._search, self._experiment.sweep, trial, retry)

    def _look_at_lease(self) -> None:
        """In the pulse's thread: whether the lease was taken while this machine stood still."""
        lease = self._lease
        with suppress(Failed, OSError):
            if lease is not None and not leases.holds(self._store.read(), lease):
                self._lease_lost.set()

    # -- a trial -------------------------------------------------------------------------------------------------

    def _train(self, answer: Mapping[str, Any]) -> dict[str, Any] | None:
        """Trains all executions of a trial; what came of it, or None where another has it now."""
        lease = Lease(*answer["lease"])
        self._lease_lost.clear()
        self._lease = lease
        values = "  ".join(f"{name} {value}" for name, value in answer["values"].items())
        print(f"trial {lease.trial}: {values}", flush=True)
        self._progress.update(trial=lease.trial)
        try:
            if answer.get("hopeless"):
                return self._outcome(lease, "FAILED", "it ended too often at the same step, along with its worker")
            for execution in range(self._experiment.sweep.executions_per_trial):
                outcome = self._execute(lease, execution)
                if outcome is not None or self._lease_lost.is_set():
                    return outcome
            return self._outcome(lease, "COMPLETED")
        finally:
            self._lease = None

    def _outcome(self, lease: Lease, status: str, message: str = "") -> dict[str, Any]:
        return {"lease": asdict(lease), "status": status, "message": message}

    def _execute(self, lease: Lease, execution: int) -> dict[str, Any] | None:
        """Trains one run of a trial to its end; None if it has its result or the lease is lost, else what is wrong."""
        while True:
            run = self._prepare(lease, execution)
            status = 0 if run.result() else self._see_through(run, lease)
            if run.result() or self._lease_lost.is_set():
                return None
            if self._interruption.requested:
                self._leave({"lease": [lease.trial, lease.token, lease.retry]})
            if status == 1:
                return self._failure(run, lease)
            print(f"trial {lease.trial} ended without a word, with {_in_words(status)}", flush=True)
            with self._store.transaction() as state:
                if not leases.holds(state, lease):
                    return None
                if leases.died(state, lease, self._position):
                    times = f"{leases.MOST_DEATHS} times at the same step"
                    why = f"it ended {times} without a word, with {_in_words(status)}"
                    return self._outcome(lease, "FAILED", why)

    def _prepare(self, lease: Lease, execution: int) -> RunDir:
        state = self._store.read()
        started = {
            "job_id": f"{self._job_id}.{lease.token}",
            "worker": self._me.name,
            **_code(self._submitted),
        }
        return trials.prepare(
            self._search,
            self._experiment,
            state["trials"],
            lease.trial,
            retry=lease.retry,
            execution=execution,
            direction=state["objective"]["direction"],
            started=started,
        )

    def _see_through(self, run: RunDir, lease: Lease) -> int:
        """Trains in a process of its own; returns its exit status."""
        name = f"{self._job_id}.{lease.token}"
        environment = {"TRUBA_JOB_ID": name, "TRUBA_JOB_NAME": f"{run.id}.{name}"}
        imports = backends.imports(self._experiment.job.backend)
        # A search without a framework has no use for Keras in its trials.
        imports = (*imports, *(_KERAS_TUNER if imports else ()), "truba_runner.worker")
        call = Call(
            "truba_runner.worker",
            "main",
            [[str(run.path)]],
            imports,
            environment,
            str(run.logs / "trial_0_log.out"),
        )
        return self._await(self._nursery.start(call))

    def _await(self, process: int) -> int:
        """Until a process has ended; what this worker is told meanwhile it is told too."""
        since = _SIGNAL_AGAIN_SECONDS
        while (ended := self._nursery.ended(_LOOK_SECONDS)) is None:
            since += _LOOK_SECONDS
            with suppress(ProcessLookupError):
                if self._lease_lost.is_set():
                    print("another worker has taken the trial: this one seemed dead", flush=True)
                    os.kill(process, signal.SIGKILL)
                elif self._interruption.requested and since >= _SIGNAL_AGAIN_SECONDS:
                    since = 0.0
                    os.kill(process, signal.SIGUSR2 if self._interruption.requeue else signal.SIGTERM)
        return int(ended["status"])

    def _failure(self, run: RunDir, lease: Lease) -> dict[str, Any]:
        """What its own record says of a trial that raised.

        Raises:
            truba_runner.errors.Failed: it is no fault of the trial's.
        """
        error = run.progress().get("error") or {"type": "Error", "message": f"see {run.logs}"}
        message = f"{error['type']}: {error['message']}"
        if any(sign in message for sign in _DISK_IS_FULL):
            raise Failed(f"trial {lease.trial} could not go on: {message}. Make room, and give the same command again.")
        place = f" at {error['file']}:{error['line']}: {error['code']}" if "file" in error else ""
        # Keras Tuner's word for a trial that may be tried again, if max_retries_per_trial says so.
        return self._outcome(lease, "INVALID", f"{message}{place}")

    # -- the end -------------------------------------------------------------------------------------------------

    def _leave(self, answer: Mapping[str, Any]) -> None:
        """Gives back what it has.

        Raises:
            Interrupted: always.
        """
        if "lease" in answer:
            with self._store.transaction() as state:
                leases.give_back(state, Lease(*answer["lease"]))
        raise Interrupted

    def _wait(self, pulse: Pulse) -> None:
        """Until the state has changed, a worker has died or this one is to end."""
        self._progress.update(trial="")
        stamp, dead = self._store.stamp(), pulse.dead()
        while self._store.stamp() == stamp and pulse.dead() == dead and not self._interruption.requested:
            time.sleep(_LOOK_SECONDS)

    def _conclude(self, pulse: Pulse) -> None:
        """The result, written by one of those that are here."""
        while not self._search.result():
            if self._interruption.requested:
                raise Interrupted
            with self._store.transaction() as state:
                leases.reap(state, self._me, pulse.dead(), self._position)
                lease: Lease | None
                if leases.RESULT in state["open"]:
                    lease = leases.take_waiting(state, self._me)
                else:
                    lease = leases.open_trial(state, leases.RESULT, 0, self._me)
            if lease is None:
                self._wait(pulse)
            else:
                self._write_result(lease)

    def _write_result(self, lease: Lease) -> None:
        self._lease_lost.clear()
        self._lease = lease

        def evaluate(run: RunDir) -> int:
            started = {"job_id": self._job_id, **_code(self._submitted)}
            run.append_submission({"event": "leased", **started})
            status = self._see_through(run, lease)
            if self._interruption.requested:
                self._leave({"lease": [lease.trial, lease.token, lease.retry]})
            return status

        result = conclude(self._search, self._experiment, self._store.read(), evaluate)
        with self._store.transaction() as state:
            if not leases.holds(state, lease):
                return
            self._search.write_result(result)
            leases.close(state, lease)
        print(f"written: {self._search.path / 'result.json'}", flush=True)
        notify.tell(self._search, "finished", {"metrics": result["metrics"]})


def _code(submitted: Mapping[str, Any]) -> dict[str, Any]:
    """The code that a search was submitted with."""
    return {key: submitted[key] for key in ("job_file", "job_sha256")}


def _in_words(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
