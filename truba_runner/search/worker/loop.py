"""Main loop of a search's worker: lease a trial, train and report it, until none is left; then write the result.

Workers communicate only through the search's directory. A worker may start, be interrupted or be killed at any time;
another worker then resumes its trial from the checkpoint. When all trials have finished, one worker writes the result.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from truba_runner.code import provenance
from truba_runner.config import partitions
from truba_runner.config.identity import training_hash
from truba_runner.config.schema import Experiment, experiment_from
from truba_runner.data import hub_names
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.events import Kind, as_record
from truba_runner.runs.progress import Progress
from truba_runner.runs.record_shapes import Stage
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import leases, trials
from truba_runner.search.conclusion import conclude
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease, Worker
from truba_runner.search.state import Store
from truba_runner.search.trial_records import values_of
from truba_runner.search.worker.heartbeat import Heartbeat
from truba_runner.search.worker.steps import describe
from truba_runner.search.worker.trainer import KERAS_TUNER, LOOK_SECONDS, Trainer, in_words
from truba_runner.slurm import job_environment
from truba_runner.storage import private, shared_lock
from truba_runner.training import backend as backends
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.nursery import Call, Nursery
from truba_runner.worker import notify
from truba_runner.worker import run as ordinary

# Attempts at an oracle step, if its process is killed.
_ATTEMPTS = 3


def main(arguments: list[str]) -> int:
    """Work on the search of the worker folder `arguments[0]`; return an exit status as `truba_runner.worker` does."""
    run = RunDir(Path(arguments[0]).resolve())
    search = SearchDir(run.path.parent.parent)
    here = job_environment.current()
    if private.refused([search.path, run.path]):
        return 1
    interruption = Interruption()
    progress = Progress(run, here.job_id)
    try:
        interruption.hold()
        interruption.listen()
        os.chdir(run.path)
        experiment = experiment_from(search.read_config())
        shared_lock.check(search.path)
        store = Store(search, shared_lock.lock_for(search.path, experiment.sweep.lock), training_hash(experiment))
        leases_so_far = int(store.read().get("tokens", 0))
        if not ordinary.begin(run, here, Position(leases_so_far, 0), experiment):
            return 0
        progress.update()
        print(
            _(
                "search {search}, worker {run}, job {job_id}, on {node}",
                search=search.id,
                run=run.id,
                job_id=here.job_id,
                node=platform.node(),
            ),
            flush=True,
        )
        _SearchWorker(search, run, experiment, store, interruption, progress, here.job_id).work()
        interruption.decided()
        progress.update(state=Stage.FINISHED)
    except Interrupted:
        return ordinary.after_interruption(run, here, progress, interruption)
    except BaseException as error:
        interruption.decided()
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
        self._interruption, self._progress = interruption, progress
        self._about = describe(experiment)
        self._me = Worker(run.id, secrets.token_hex(4))
        self._code = provenance.passed_on(run.submitted())
        # Keras Tuner needs Keras, and Keras a backend: the framework that the trials import anyway.
        backend = "torch" if experiment.job.backend == "fastai" else "tensorflow"
        offline = hub_names.variables(experiment.data)
        self._nursery = Nursery({"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "1", **offline})
        self._started = replace(self._code, kind=Kind.LEASED, job_id=job_id, worker=run.id)
        self._trainer = Trainer(search, experiment, store, self._nursery, interruption, self._started)
        self._position = partial(trials.position, search, experiment.sweep)
        self._let_go_of: set[str] = set()

    def work(self) -> None:
        """Train trials until none is left, then conclude the search.

        Raises:
            truba_runner.training.interrupt.Interrupted: a signal came; another worker can take over the trial.
            truba_runner.errors.Failed: the search cannot continue.
        """
        heartbeat = Heartbeat(self._run.path, self._experiment.sweep.lease_seconds, self._trainer.look_at_lease)
        try:
            with heartbeat:
                self._work(heartbeat)
        finally:
            self._nursery.close()

    def _work(self, heartbeat: Heartbeat) -> None:
        if not self._store.read():
            self._step("begin", as_record(self._code), str(partitions.scratch_of(self._experiment)))
        outcome: dict[str, Any] | None = None
        while True:
            answer = self._next(outcome, heartbeat)
            if "told" in answer:
                print(answer["told"], flush=True)
            self._let_go(answer.get("over", ()))
            if answer.get("failed"):
                raise Failed("the search was stopped: {reason}", reason=answer["failed"])
            lease = Lease(*answer["lease"]) if "lease" in answer else None
            if self._interruption.requested:
                self._trainer.leave(lease)
            if answer.get("finished"):
                break
            outcome = None
            if lease is None:
                self._wait(heartbeat)
            else:
                values = "  ".join(f"{name} {value}" for name, value in answer["values"].items())
                print(_("trial {trial}: {values}", trial=lease.trial, values=values), flush=True)
                self._progress.update(trial=lease.trial)
                outcome = self._trainer.train(lease, failed_too_often=answer.get("failed_too_often", False))
        self._conclude(heartbeat)

    def _let_go(self, over: Sequence[str]) -> None:
        for trial in over:
            if trial not in self._let_go_of:
                trials.let_go(self._search, self._experiment.sweep, trial)
                self._let_go_of.add(trial)

    # -- the oracle ----------------------------------------------------------------------------------------------

    def _next(self, outcome: dict[str, Any] | None, heartbeat: Heartbeat) -> dict[str, Any]:
        """Report a trial's outcome and lease the next trial: a waiting one, or a new one from the oracle."""
        if outcome is None and not self._interruption.requested and (taken := self._take_waiting(heartbeat)):
            return taken
        if outcome is None and self._interruption.requested:
            return {}
        ask = not self._interruption.requested
        return self._step("step", sorted(heartbeat.dead()), outcome, ask)

    def _take_waiting(self, heartbeat: Heartbeat) -> dict[str, Any]:
        """Lease a trial that another worker has left, without a step of the oracle."""
        with self._store.transaction() as state:
            if state["finished"] or state["failed"]:
                return {"finished": state["finished"], "failed": state["failed"]}
            for trial in leases.reap(state, self._me, heartbeat.dead(), self._position):
                print(_("trial {trial}: its worker has died, another worker resumes it", trial=trial), flush=True)
            lease = leases.take_waiting(state, self._me)
            if lease is None:
                return {}
            values = values_of(state["trials"][lease.trial])
            failed_too_often = leases.failed_too_often(state["open"][lease.trial])
            return {
                "lease": [lease.trial, lease.token, lease.retry],
                "values": values,
                "failed_too_often": failed_too_often,
            }

    def _step(self, function: str, *arguments: Any) -> dict[str, Any]:
        """Call a step of the oracle in a child process; repeat it if the process was killed."""
        imports = (*backends.imports(self._experiment.job.backend), *KERAS_TUNER)
        for _attempt in range(_ATTEMPTS):
            given = [str(self._search.path), self._about, [self._me.name, self._me.start], *arguments]
            self._nursery.start(Call("truba_runner.search.worker.steps", function, given, imports))
            while (ended := self._nursery.ended(60)) is None:
                pass
            if ended["status"] == 0:
                return dict(ended["value"])
            if ended["status"] > 0:
                unknown = _("the search's oracle failed; the lines above show why")
                raise Failed((ended["value"] or {}).get("failed", unknown))
            print(
                _("a step of the oracle ended with {how}, and is repeated", how=in_words(ended["status"])), flush=True
            )
            # The killed step may have leased a trial: with a new `start`, that lease counts as an earlier start's.
            self._me = Worker(self._me.name, secrets.token_hex(4))
        raise Failed("the search's oracle failed: it was killed again and again")

    # -- the end -------------------------------------------------------------------------------------------------

    def _wait(self, heartbeat: Heartbeat) -> None:
        """Wait until the state has changed, a worker has died, or this worker is interrupted."""
        self._progress.update(trial="")
        stamp, dead = self._store.stamp(), heartbeat.dead()
        while self._store.stamp() == stamp and heartbeat.dead() == dead and not self._interruption.requested:
            time.sleep(LOOK_SECONDS)

    def _conclude(self, heartbeat: Heartbeat) -> None:
        """Wait for the search's result, or write it if no other worker does."""
        while not self._search.result():
            if self._interruption.requested:
                raise Interrupted
            with self._store.transaction() as state:
                leases.reap(state, self._me, heartbeat.dead(), self._position)
                lease: Lease | None
                if leases.RESULT in state["open"]:
                    lease = leases.take_waiting(state, self._me)
                else:
                    lease = leases.open_trial(state, leases.RESULT, 0, self._me)
            if lease is None:
                self._wait(heartbeat)
            else:
                self._write_result(lease)

    def _write_result(self, lease: Lease) -> None:
        def evaluate(run: RunDir) -> int:
            run.append_submission(self._started)
            status = self._trainer.see_through(run, lease)
            if self._interruption.requested:
                self._trainer.leave(lease)
            return status

        with self._trainer.holding(lease):
            result = conclude(self._search, self._experiment, self._store.read(), evaluate)
        with self._store.transaction() as state:
            if not leases.holds(state, lease):
                return
            self._search.write_result(result)
            leases.close(state, lease)
        print(_("written: {file}", file=self._search.path / "result.json"), flush=True)
        notify.tell(self._search, "finished", {"metrics": result["metrics"]})
