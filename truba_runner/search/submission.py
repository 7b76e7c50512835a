"""Start a search: create its directory, and submit the workers that are not queued or running yet."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from truba_runner.code import job_module, provenance, snapshot
from truba_runner.config.identity import newest, run_id, training_hash
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.runs import runs_folders
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.search import overview
from truba_runner.search.directory import SearchDir
from truba_runner.search.state import Store, read_state
from truba_runner.slurm import client
from truba_runner.storage import folder_lock, private
from truba_runner.storage.shared_lock import lock_for
from truba_runner.submission import messages
from truba_runner.submission.already import already
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared, prepare_directory
from truba_runner.submission.submission import Submission, warn_of_cost

_PROGRAM = "truba_runner.search.worker"


@dataclass(frozen=True)
class WorkersSubmission(Submission):
    """Job array of a search's workers; each has its own records, which name the array. `first`: the first worker."""

    search: SearchDir
    workers: Sequence[Prepared]

    @property
    def job_name(self) -> str:
        """The job's name in the queue, by which it is found."""
        return f"{self.search.id}-x{len(self.workers)}.{self.token}"

    @property
    def runs(self) -> Sequence[Prepared]:
        """The workers, in order."""
        return self.workers

    @property
    def log_folder(self) -> Path:
        """The log folder of all workers."""
        return self.search.logs

    @property
    def array_size(self) -> int:
        """The number of workers."""
        return len(self.workers)

    @property
    def _array_folder(self) -> Path:
        """The folder with a link to a worker's folder for each array task, named by its index."""
        return self.search.path / "arrays" / self.token

    def worker(self) -> str:
        """Return the module that a task runs and its arguments, for the shell."""
        return f"{self.first.program} {shlex.quote(str(self._array_folder))}/$SLURM_ARRAY_TASK_ID"

    def parameters(self) -> dict[str, Any]:
        """Return Slurm's parameters under submitit's names."""
        return {**super().parameters(), "array_parallelism": self.array_size}

    def record_intent(self) -> None:
        """Record the array's intent with each of its workers."""
        self._array_folder.mkdir(mode=0o700, parents=True)
        intent = self.intent()
        for index, prepared in enumerate(self.workers):
            prepare_directory(prepared)
            os.symlink(prepared.run.path, self._array_folder / str(index))
            prepared.run.append_submission(replace(intent, array_index=index))

    def record(self, event: Event) -> None:
        """Append an event to each worker's record, with that worker's own job id."""
        for index, prepared in enumerate(self.workers):
            own = replace(event, job_id=f"{event.job_id}_{index}") if event.job_id else event
            prepared.run.append_submission(own)


def directory(experiment: Experiment) -> SearchDir:
    """Return the newest search directory of this config; for a fresh start, the next one.

    Raises:
        truba_runner.errors.Refused: the directory is another search's, another user's or an ordinary run's.
        truba_runner.errors.Failed: the config in the directory cannot be read.
    """
    folder, name = Path(experiment.cluster.runs_folder), experiment.sweep.directory or run_id(experiment)
    try:
        search = SearchDir(folder / newest(name, lambda one: SearchDir(folder / one).exists(), experiment.fresh))
        private.require(folder, [search.path])
        if search.exists():
            _refuse_another(search, experiment)
    except PermissionError as error:
        raise Refused(
            Problem(
                f"{error.filename}",
                _("{user} cannot read it: it belongs to another user.", user=getpass.getuser()),
                _("Choose a folder of your own with cluster.runs_folder=FOLDER."),
            )
        ) from error
    return search


def _refuse_another(search: SearchDir, experiment: Experiment) -> None:
    from truba_runner.config.schema import experiment_from

    try:
        known = experiment_from(search.read_config())
    except Exception as error:  # PyYAML and OmegaConf raise many kinds for a damaged file.
        message = _(
            "{file} cannot be read ({error}). Start a new search with fresh=true (the old one is kept).",
            file=search.config_file,
            error=error,
        )
        raise Failed(message) from error
    if training_hash(known) == training_hash(experiment):
        return
    rule = _(
        "{path} belongs to an ordinary run with another config; a run and a search in one folder would "
        "corrupt each other.",
        path=search.path,
    )
    if known.sweep.kind:
        rule = _(
            "{path} belongs to a search ({kind} over {name}) with another config; two searches in one folder would "
            "corrupt each other.",
            path=search.path,
            kind=known.sweep.kind,
            name=known.name,
        )
    raise Refused(
        Problem(
            f"sweep.directory={search.id}",
            rule,
            _(
                "Choose another name, leave it out to get one of the search's own, or start a new search with "
                "fresh=true (the old one is kept)."
            ),
        )
    )


def workers(experiment: Experiment, search: SearchDir, plan: Prepared) -> list[Prepared]:
    """Return the search's workers, as runs that a job array can hold."""
    count = experiment.sweep.workers if experiment.cluster.scheduler == "slurm" else 1
    return [replace(plan, run=search.worker(index), program=_PROGRAM) for index in range(count)]


def refuse_what_cannot_go_on(searches: Sequence[Prepared]) -> None:
    """Refuse searches without hyperparameters, several in one directory, given up ones, and ones of changed code.

    Raises:
        truba_runner.errors.Refused: there are such searches.
    """
    problems = [found for prepared in searches for found in (*_job_problems(prepared), *_in_its_way(prepared))]
    kinds: dict[str, str] = {}
    for prepared in searches:
        identity = training_hash(prepared.experiment)
        if kinds.setdefault(prepared.run.id, identity) != identity:
            rule = _("several searches of this command would share it and corrupt each other.")
            remedy = _("Leave it out: each search then gets its own.")
            problems.append(Problem(f"sweep.directory={prepared.run.id}", rule, remedy))
    if problems:
        raise Refused(*dict.fromkeys(problems))


def _job_problems(prepared: Prepared) -> Iterator[Problem]:
    """Yield problems of the job that are found without Keras Tuner, which a login node may not have."""
    space = prepared.experiment.sweep.space
    if job_module.takes_hp(prepared.job_file):
        return
    if not space:
        kind = prepared.experiment.sweep.kind
        remedy = _("Take values from hp there, or list config keys in sweep.space: docs/search.md.")
        rule = _(
            "there is nothing to search: build_model in {file} takes no hp, and sweep.space is empty.",
            file=prepared.job_file,
        )
        yield Problem(f"sweep={kind}", rule, remedy)
    for name in space:
        if "." not in str(name):
            remedy = _("Name a key of the config, such as job.options.{name}.", name=name)
            rule = _("build_model in {file} takes no hp, so nothing would use this value.", file=prepared.job_file)
            yield Problem(f"sweep.space.{name}", rule, remedy)


def _in_its_way(prepared: Prepared) -> Iterator[Problem]:
    """Yield problems from the search's past: it was given up, or has trials begun with other code."""
    search = SearchDir(prepared.run.path)
    if search.result() or not (state := read_state(search)):
        return
    most = prepared.experiment.sweep.max_consecutive_failed_trials
    if state["failed"] and most <= _most_failures(search):
        yield Problem(
            search.id,
            _("the search was stopped: {reason}", reason=state["failed"]),
            _(
                "A larger sweep.max_consecutive_failed_trials (now {most}) resumes it; fresh=true starts a new "
                "search (the old one is kept).",
                most=most,
            ),
        )
    then = [event.job_sha256 for event in search.submissions() if event.job_sha256]
    same = then[-1:] in ([], [provenance.code_sha256(prepared.job_file)])
    if same or prepared.experiment.accept_changed_code or not state["trials"]:
        return
    yield Problem(
        search.id,
        _(
            "{count} of its trials were started with another version of {file}; resuming would compare networks of "
            "two different codes.",
            count=len(state["trials"]),
            file=prepared.job_file,
        ),
        _(
            "fresh=true starts a new search with the new code; accept_changed_code=true resumes this search with "
            "it, for a change that affects neither the networks nor their training; if you restore the file, the "
            "same command resumes the search."
        ),
    )


def _most_failures(search: SearchDir) -> int:
    """Return how many trials in a row may fail, according to the search's recorded config."""
    return int(search.read_config()["sweep"]["max_consecutive_failed_trials"])


def launch(prepared: Prepared) -> Outcome:
    """Submit the workers of a search that are neither queued nor running; without Slurm, run one in the foreground.

    `prepared.run` is the directory that `directory` returned.

    Raises:
        truba_runner.errors.Refused: Slurm refuses the job, or the search cannot continue.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    experiment = prepared.experiment
    search = SearchDir(prepared.run.path)
    refuse_what_cannot_go_on([prepared])
    found = workers(experiment, search, prepared)
    if experiment.dry_run:
        messages.dry_run([WorkersSubmission(found[0], search=search, workers=found)])
        return Outcome(search.id, str(search.path), Action.DRY_RUN)
    if search.result():
        messages.changed_code([replace(prepared, run=RunDir(search.path))])
        outcome = Outcome(search.id, str(search.path), Action.FINISHED)
    else:
        _make(search, prepared)
        runs_folders.remember(search.path.parent)
        outcome = _through_slurm(search, found) if experiment.cluster.scheduler == "slurm" else _here(search, found[0])
    messages.came_of_it(outcome)
    if outcome.action in {Action.SUBMITTED, Action.RUNNING}:
        print(f"  truba status {search.id}")
    return outcome


def _make(search: SearchDir, prepared: Prepared) -> None:
    with folder_lock.lock(search.path.parent):
        search.create()
        if not search.exists():
            search.write_config(asdict(prepared.experiment))
        elif _most_failures(search) < prepared.experiment.sweep.max_consecutive_failed_trials:
            _take_up_again(search, prepared.experiment)
        code = provenance.record(prepared.job_file, snapshot.take(prepared.experiment, prepared.job_file))
        search.append_submission(Event(Kind.SEARCH, time.time(), **code))
        for index in range(prepared.experiment.sweep.workers):
            search.create_worker(index)


def _take_up_again(search: SearchDir, experiment: Experiment) -> None:
    """Raise the limit of consecutive failed trials; a search that was given up resumes."""
    search.write_config(asdict(experiment))
    if not read_state(search):
        return
    with Store(search, lock_for(search.path, experiment.sweep.lock), training_hash(experiment)).transaction() as state:
        state["failed"] = ""


def _through_slurm(search: SearchDir, found: Sequence[Prepared]) -> Outcome:
    if not client.available():
        raise Failed("there is no sbatch on the PATH; is this a login node? cluster=local searches here")
    with folder_lock.lock(search.path.parent) as held:
        there = already(one.run for one in found)
        wanted = [one for one in found if one.run.id not in there]
        job_id = ""
        if wanted:
            submission = WorkersSubmission(wanted[0], search=search, workers=wanted)
            warn_of_cost([submission])
            job_id = submission.send(held)
            messages.submitted(submission, job_id)
    if there:
        print(_("{count} of {all} workers are in the queue or running already", count=len(there), all=len(found)))
    return Outcome(search.id, str(search.path), Action.SUBMITTED if wanted else Action.RUNNING, job_id or _jobs(found))


def _jobs(found: Sequence[Prepared]) -> str:
    return ", ".join(dict.fromkeys(last_job_id(one.run).split("_")[0] for one in found))


def _here(search: SearchDir, prepared: Prepared) -> Outcome:
    from truba_runner.submission.local import see_through, start_here

    with folder_lock.lock(search.path.parent):
        worker = None if state_of(prepared.run.record(), {}).live else start_here(prepared)
    if worker is None:
        print(_("the search is already running, as {job_id}", job_id=last_job_id(prepared.run)), file=sys.stderr)
        return Outcome(search.id, str(search.path), Action.RUNNING)
    stopped = see_through(prepared, worker)
    action = Action.TRAINED if search.result() else Action.FAILED
    why = "" if action == Action.TRAINED else overview.standing(search, {}).why
    return Outcome(search.id, str(search.path), action, last_job_id(prepared.run), stopped, why)
