"""One sbatch for many runs that ask for the same: a job array whose tasks train one run each, or several side by side.

What the runs share is on record once, in the sweep's own folder, and synced to disk there; a run directory holds its
config and a line that names the array.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.language import counted
from truba_runner.runs.run_directory import RunDir, config_text
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission


@dataclass(frozen=True)
class ArraySubmission(Submission):
    """A job array. `first` is the first of its runs."""

    sweep: SweepDir = field(kw_only=True)
    # The runs of each task.
    tasks: Sequence[Sequence[Prepared]] = field(kw_only=True)
    allocation: Request = field(kw_only=True)
    # How many runs a task has room for.
    places: int = field(kw_only=True)
    # How many tasks may run at once.
    max_parallel: int = field(kw_only=True)
    # The run that must live through its first epoch before this array may start; empty: it starts when it can.
    canary: str = ""
    # That run's job.
    canary_job: str = ""
    # Whether its one run is such a canary.
    goes_ahead: bool = False
    # The job array with the tasks' learning-rate finders: each waits for the task of its own number. Empty: none.
    after: str = ""
    # The tasks' numbers, where these are not those from 0 on.
    numbers: Sequence[int] = ()

    @property
    def runs(self) -> list[Prepared]:
        """All of them, in order."""
        return [prepared for task in self.tasks for prepared in task]

    @property
    def task_numbers(self) -> Sequence[int]:
        """By which Slurm tells the tasks apart, in order."""
        return self.numbers or range(len(self.tasks))

    @property
    def job_name(self) -> str:
        """What the queue shows, and what the job is found by."""
        return f"{self.first.experiment.name}-x{len(self.runs)}.{self.token}"

    @property
    def request(self) -> Request:
        """What is asked of Slurm for each task."""
        return self.allocation

    @property
    def log_folder(self) -> Path:
        """Where Slurm writes what a task prints before and after its runs."""
        return self.sweep.logs

    @property
    def array_size(self) -> int:
        """How many tasks the job array has."""
        return len(self.tasks)

    def waits_for(self) -> str:
        """The array of its tasks' finders."""
        if not self.after:
            return ""
        return counted(
            ", after its finders in {after}", ", after their finders in {after}", len(self.tasks), after=self.after
        )

    def worker(self) -> str:
        """The Python module that a task runs."""
        return f"truba_runner.sweeps.task {shlex.quote(str(self.sweep.path))} {self.token}"

    def parameters(self) -> dict[str, Any]:
        """In submitit's names."""
        parameters = {**super().parameters(), "array_parallelism": self.max_parallel}
        more: dict[str, Any] = {}
        if self.canary:
            more = {"dependency": f"afterok:{self.canary_job}", "kill_on_invalid_dep": "yes"}
        if self.after:
            # Else a task whose finder has failed waits for ever.
            more = {"dependency": f"aftercorr:{self.after}", "kill_on_invalid_dep": "yes"}
        if self.numbers:
            at_once = min(len(self.numbers), self.max_parallel)
            more["array"] = f"{','.join(map(str, self.numbers))}%{at_once}"
        return {**parameters, "additional_parameters": {**parameters["additional_parameters"], **more}}

    def intent(self) -> dict[str, Any]:
        """The record of an array that is about to be submitted."""
        about = {
            "places": self.places,
            "share_gpus": self.allocation.gpus == self.first.request.gpus,
            "canary": self.canary,
            "goes_ahead": self.goes_ahead,
            "tasks": [[prepared.run.id for prepared in task] for task in self.tasks],
            **({"numbers": list(self.numbers)} if self.numbers else {}),
        }
        return {**super().intent(), **about}

    def record_intent(self) -> None:
        """Makes the run directories, each with its config and a line that names the array; then records the array.

        Only that is synced to disk. Where a machine dies with the rest unwritten, the array's tasks find that the runs
        are not theirs and do nothing, and the same command submits them again.
        """
        texts = _ConfigTexts()
        known = set(os.listdir(self.sweep.runs_folder))
        name = {"time": time.time(), "token": self.token, "job_name": self.job_name, "sweep": self.sweep.id}
        for index, task in zip(self.task_numbers, self.tasks, strict=True):
            for prepared in task:
                finder = {"finder": prepared.finder.run.id} if prepared.finder else {}
                own = {"event": "intent", **name, "array_index": index, **finder}
                run = prepared.run
                content = texts.of(_undrawn(prepared.experiment))
                if run.id in known:
                    run.write_config_text(content, durable=False)
                else:
                    _write_new(run, content)
                run.append_submission(own, durable=False)
        self.record(self.intent())

    def record(self, event: dict[str, Any]) -> None:
        """Adds to the sweep's record."""
        self.sweep.append(event)


def _undrawn(experiment: Experiment) -> Experiment:
    """Of a thousand runs each leaves few files: no pictures."""
    return replace(experiment, finish=replace(experiment.finish, plots=False))


def _write_new(run: RunDir, content: bytes) -> None:
    """A run directory and its config; one that a kill cuts short has no submission, and is written again."""
    run.path.mkdir(mode=0o700)
    with open(os.open(run.config_file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(content)


class _ConfigTexts:
    """Configs as text, as `config_text` writes them; what runs have in common is written out once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Any, bytes]] = {}

    def of(self, experiment: Experiment) -> bytes:
        return b"".join(self._part(one.name, getattr(experiment, one.name)) for one in fields(experiment))

    def _part(self, name: str, value: Any) -> bytes:
        if type(value) is int:
            return b"%s: %d\n" % (name.encode(), value)
        # The value is kept too: else another could come to have its id.
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
    """Without dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
