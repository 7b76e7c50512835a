"""A search's start: its directory, and a job for each of its workers that is not there yet."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from truba_runner import places, provenance, rundir, scheduler, tell
from truba_runner.config import Experiment, run_id, training_hash
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.rundir import RunDir
from truba_runner.search.directory import SearchDir
from truba_runner.state import last_job_id, state_of
from truba_runner.submit import Prepared, Submission, prepare_directory, settle
from truba_runner.tell import Outcome

_PROGRAM = "truba_runner.search.worker"


@dataclass(frozen=True)
class WorkersSubmission(Submission):
    """The job array of a search's workers; each has its own records, which name the array. `first` is the first."""

    search: SearchDir = field(kw_only=True)
    workers: Sequence[Prepared] = field(kw_only=True)

    @property
    def job_name(self) -> str:
        """What the queue shows, and what the job is found by."""
        return f"{self.search.id}-x{len(self.workers)}.{self.token}"

    @property
    def runs(self) -> Sequence[Prepared]:
        """The workers, in order."""
        return self.workers

    @property
    def log_folder(self) -> Path:
        """Where all workers print."""
        return self.search.logs

    @property
    def array_size(self) -> int:
        """How many workers."""
        return len(self.workers)

    @property
    def _array_folder(self) -> Path:
        """Holds a link to a worker's folder for each task of the array, named by its index."""
        return self.search.path / "arrays" / self.token

    def worker(self) -> str:
        """The Python module that a task runs, and what it is told, for the shell."""
        return f"{self.first.program} {shlex.quote(str(self._array_folder))}/$SLURM_ARRAY_TASK_ID"

    def parameters(self) -> dict[str, Any]:
        """In submitit's names."""
        return {**super().parameters(), "array_parallelism": self.array_size}

    def record_intent(self) -> None:
        """Puts the array on record with each of its workers."""
        self._array_folder.mkdir(mode=0o700, parents=True)
        intent = self.intent()
        for index, prepared in enumerate(self.workers):
            prepare_directory(prepared)
            os.symlink(prepared.run.path, self._array_folder / str(index))
            prepared.run.append_submission({**intent, "array_index": index})

    def record(self, event: dict[str, Any]) -> None:
        """Adds to the record of each worker, to each its own job."""
        for index, prepared in enumerate(self.workers):
            own = {"job_id": f"{event['job_id']}_{index}"} if "job_id" in event else {}
            prepared.run.append_submission({**event, **own})


def directory(experiment: Experiment) -> SearchDir:
    """The newest search of this config, or, for a fresh start, the one after it.

    Raises:
        Refused: the directory is another search's, another user's or an ordinary run's.
    """
    folder, name = Path(experiment.cluster.runs_folder), experiment.sweep.directory or run_id(experiment)
    count = 1
    try:
        while SearchDir(folder / f"{name}.{count + 1}").exists():
            count += 1
        if experiment.fresh and SearchDir(folder / name).exists():
            count += 1
        search = SearchDir(folder / (name if count == 1 else f"{name}.{count}"))
        if search.exists():
            _refuse_another(search, experiment)
    except PermissionError as error:
        raise Refused(
            Problem(
                f"{error.filename}",
                f"{getpass.getuser()} may not look into it: it is another user's.",
                "Choose a folder of your own with cluster.runs_folder=FOLDER.",
            )
        ) from error
    return search


def _refuse_another(search: SearchDir, experiment: Experiment) -> None:
    from truba_runner.config import experiment_from

    known = experiment_from(search.read_config())
    if training_hash(known) == training_hash(experiment):
        return
    kind = f"a search ({known.sweep.kind} over {known.name})" if known.sweep.kind else "an ordinary run"
    raise Refused(
        Problem(
            f"sweep.directory={search.id}",
            f"{search.path} belongs to {kind} of another config; two searches in one would spoil each other.",
            "Choose another name, leave it out for one of the search's own, or begin anew beside it with fresh=true.",
        )
    )


def workers(experiment: Experiment, search: SearchDir, plan: Prepared) -> list[Prepared]:
    """The search's workers, as runs that a job array can hold."""
    count = experiment.sweep.workers if experiment.cluster.scheduler == "slurm" else 1
    return [replace(plan, run=search.worker(index), program=_PROGRAM) for index in range(count)]


def launch(prepared: Prepared) -> Outcome:
    """Starts the workers of a search that are neither waiting nor running; here they work in the foreground.

    `prepared.run` is what `directory` gave.

    Raises:
        Refused: Slurm will not have the job.
        Failed: Slurm does not answer.
    """
    experiment = prepared.experiment
    search = SearchDir(prepared.run.path)
    found = workers(experiment, search, prepared)
    if experiment.dry_run:
        tell.dry_run([WorkersSubmission(found[0], search=search, workers=found)])
        return Outcome(search.id, str(search.path), "dry_run")
    if search.result():
        tell.changed_code(replace(prepared, run=RunDir(search.path)))
        outcome = Outcome(search.id, str(search.path), "finished")
    else:
        _make(search, prepared)
        places.remember(search.path.parent)
        outcome = _through_slurm(search, found) if experiment.cluster.scheduler == "slurm" else _here(search, found[0])
    tell.came_of_it(outcome)
    return outcome


def _make(search: SearchDir, prepared: Prepared) -> None:
    with rundir.lock(search.path.parent):
        search.create()
        if not search.exists():
            search.write_config(asdict(prepared.experiment))
        event = {"event": "search", "time": time.time(), **provenance.record(prepared.job_file)}
        search.append_submission(event)
        for index in range(prepared.experiment.sweep.workers):
            search.create_worker(index)


def _through_slurm(search: SearchDir, found: Sequence[Prepared]) -> Outcome:
    if not scheduler.available():
        raise Failed("there is no sbatch on the PATH; is this a login node? cluster=local searches here")
    with rundir.lock(search.path.parent) as held:
        wanted = [one for one in found if not _is_there(one.run)]
        job_id = ""
        if wanted:
            submission = WorkersSubmission(wanted[0], search=search, workers=wanted)
            job_id = submission.send(held)
            tell.submitted(submission, job_id)
    already = len(found) - len(wanted)
    if already:
        print(f"{already} of {len(found)} workers are in the queue or running already")
    return Outcome(search.id, str(search.path), "submitted" if wanted else "running", job_id or _jobs(found))


def _jobs(found: Sequence[Prepared]) -> str:
    return ", ".join(dict.fromkeys(last_job_id(one.run).split("_")[0] for one in found))


def _is_there(run: RunDir) -> bool:
    if not run.submissions():
        return False
    try:
        settle(run)
        return state_of(run, scheduler.queue()).live
    except scheduler.SlurmError as error:
        raise Failed(f"Slurm does not answer ({error.message}), so whether {run.id} runs is not known") from error


def _here(search: SearchDir, prepared: Prepared) -> Outcome:
    from truba_runner.local import see_through, start_here

    with rundir.lock(search.path.parent):
        worker = None if state_of(prepared.run, {}).live else start_here(prepared)
    if worker is None:
        print(f"the search runs already, as {last_job_id(prepared.run)}", file=sys.stderr)
        return Outcome(search.id, str(search.path), "running")
    see_through(prepared, worker)
    return Outcome(search.id, str(search.path), "trained" if search.result() else "failed", last_job_id(prepared.run))
