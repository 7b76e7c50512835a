"""Submit runs with equal requests in one sbatch: a job array whose tasks train one run each, or several packed runs.

What the runs share is recorded once, in the sweep's folder, and synced to disk; a run directory holds its config and an
event that names the array.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.language import counted
from truba_runner.older_python import zip_equal
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir, config_text
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission


@dataclass(frozen=True)
class ArraySubmission(Submission):
    """Submission of a job array; `first` is the first of its runs."""

    sweep: SweepDir
    # The runs of each task.
    tasks: Sequence[Sequence[Prepared]]
    allocation: Request
    # Number of slots for runs in a task.
    places: int
    # Number of tasks that may run at once.
    max_parallel: int
    # The run that must finish its first epoch before this array may start; empty: it does not wait.
    canary: str = ""
    # The job id of the canary.
    canary_job: str = ""
    # Whether its only run is the canary of other arrays.
    goes_ahead: bool = False
    # The job array of the learning-rate finders: each task waits for the finder of the same number. Empty: none.
    after: str = ""
    # The task numbers, if they are not 0, 1, 2 and so on.
    numbers: Sequence[int] = ()

    @property
    def runs(self) -> list[Prepared]:
        """All runs, in order."""
        return [prepared for task in self.tasks for prepared in task]

    @property
    def task_numbers(self) -> Sequence[int]:
        """Slurm's numbers of the tasks, in order."""
        return self.numbers or range(len(self.tasks))

    @property
    def job_name(self) -> str:
        """Name in the queue, by which the job is found again."""
        return f"{self.first.experiment.name}-x{len(self.runs)}.{self.token}"

    @property
    def request(self) -> Request:
        """Resources requested from Slurm for each task."""
        return self.allocation

    @property
    def log_folder(self) -> Path:
        """Folder where Slurm writes what a task prints before and after its runs."""
        return self.sweep.logs

    @property
    def array_size(self) -> int:
        """Number of tasks in the job array."""
        return len(self.tasks)

    def waits_for(self) -> str:
        """Describe for the user the finders that the tasks wait for; empty if there are none."""
        if not self.after:
            return ""
        return counted(
            ", after its finders in {after}", ", after their finders in {after}", len(self.tasks), after=self.after
        )

    def worker(self) -> str:
        """Return the Python module that a task runs and its arguments, quoted for the shell."""
        return f"truba_runner.sweeps.task {self.subject()}"

    def subject(self) -> str:
        """Return the arguments that name a task's runs, quoted for the shell."""
        return f"{shlex.quote(str(self.sweep.path))} {self.token}"

    def parameters(self) -> dict[str, Any]:
        """Return the sbatch parameters under submitit's names."""
        parameters = {**super().parameters(), "array_parallelism": self.max_parallel}
        more: dict[str, Any] = {}
        if self.canary:
            more = {"dependency": f"afterok:{self.canary_job}", "kill_on_invalid_dep": "yes"}
        if self.after:
            # Without kill_on_invalid_dep a task whose finder failed would wait for ever.
            more = {"dependency": f"aftercorr:{self.after}", "kill_on_invalid_dep": "yes"}
        if self.numbers:
            at_once = min(len(self.numbers), self.max_parallel)
            more["array"] = f"{','.join(map(str, self.numbers))}%{at_once}"
        further = parameters["additional_parameters"]
        if own := further.get("dependency"):
            # Slurm waits for all dependencies in a list separated by commas.
            more["dependency"] = ",".join(one for one in (more.get("dependency"), str(own)) if one)
        return {**parameters, "additional_parameters": {**further, **more}}

    def intent(self) -> Event:
        """Return the event that announces this array."""
        return replace(
            super().intent(),
            places=self.places,
            share_gpus=self.allocation.gpus == self.first.request.gpus,
            canary=self.canary,
            goes_ahead=self.goes_ahead,
            tasks=[[prepared.run.id for prepared in task] for task in self.tasks],
            numbers=self.numbers,
        )

    def record_intent(self) -> None:
        """Write each run directory with its config and an event that names the array; then record the array.

        Only the array's record is synced to disk. If the machine dies before the run directories are on disk, the tasks
        see that the runs are not theirs and do nothing, and the same command submits the runs again.
        """
        texts = _ConfigTexts()
        known = set(os.listdir(self.sweep.runs_folder))
        name = Event(Kind.INTENT, time.time(), token=self.token, job_name=self.job_name, sweep=self.sweep.id)
        for index, task in zip_equal(self.task_numbers, self.tasks):
            for prepared in task:
                run, finder = prepared.run, prepared.finder.run.id if prepared.finder else ""
                content = texts.of(_undrawn(prepared.experiment))
                if run.id in known:
                    run.write_config_text(content, durable=False)
                else:
                    _write_new(run, content)
                run.append_submission(replace(name, array_index=index, finder=finder), durable=False)
        self.record(self.intent())

    def record(self, event: Event) -> None:
        """Append an event to the sweep's submissions."""
        self.sweep.append(event)


def _undrawn(experiment: Experiment) -> Experiment:
    """Turn plots off, so that a thousand runs leave fewer files."""
    return replace(experiment, finish=replace(experiment.finish, plots=False))


def _write_new(run: RunDir, content: bytes) -> None:
    """Write a new run directory and its config; after a kill in between it has no submission and is rewritten."""
    run.path.mkdir(mode=0o700)
    with open(os.open(run.config_file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(content)


class _ConfigTexts:
    """Serializer of configs, with the output of `config_text`, that serializes parts shared by runs only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Any, bytes]] = {}

    def of(self, experiment: Experiment) -> bytes:
        return b"".join(self._part(one.name, getattr(experiment, one.name)) for one in fields(experiment))

    def _part(self, name: str, value: Any) -> bytes:
        if type(value) is int:
            return b"%s: %d\n" % (name.encode(), value)
        # Holding the value keeps its id from being reused by another object.
        key = (name, id(value))
        if key not in self._known:
            self._known[key] = (value, self._written(name, value))
        return self._known[key][1]

    def _written(self, name: str, value: Any) -> bytes:
        if not is_dataclass(value) or isinstance(value, type):
            return config_text({name: _plain(value)})
        lines = b"".join(self._part(one.name, getattr(value, one.name)) for one in fields(value)).splitlines()
        return b"\n".join([f"{name}:".encode(), *(b"  " + line if line else b"" for line in lines), b""])


def _plain(value: Any) -> Any:
    """Return the value with dataclasses converted to dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
