"""Paths of a search directory.

run.yaml           the resolved config, with the search's own settings
submissions.jsonl  when the search was started, and with what code
state.json         the oracle, its trials and which worker has which trial; changed under the lock
lock*              see storage/shared_lock.py
workers/           one folder per worker: records of its jobs, as of a run, and `alive`, touched while it lives
trials/            one run directory per trial; further ones for repeated executions and retries
best/              run directories that evaluate the best trials' models
result.json        written once, when every trial has finished
logs/              output of the workers
arrays/            one folder per job array: maps its tasks to workers
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import safe_files


@dataclass(frozen=True)
class WorkerDir(RunDir):
    """The records of a worker. Its `logs` is a link to the log folder that all workers share."""

    @property
    def logs(self) -> Path:
        """The search's log folder."""
        return self.path.parent.parent / "logs"


@dataclass(frozen=True)
class SearchDir(RunDir):
    """The records of one search; `id` is `NAME-HASH`, or the name in `sweep.directory`."""

    @property
    def state_file(self) -> Path:
        """The state: JSON, replaced atomically."""
        return self.path / "state.json"

    @property
    def workers_folder(self) -> Path:
        """The folder with one folder per worker."""
        return self.path / "workers"

    @property
    def trials_folder(self) -> Path:
        """The folder of the trials' run directories."""
        return self.path / "trials"

    def create(self) -> None:
        """Create the directory and its folders, accessible to their owner alone."""
        super().create()
        for folder in (self.workers_folder, self.trials_folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    def worker(self, index: int) -> RunDir:
        """Return the records of worker `index`, named after the search because the queue and `ps` show this name."""
        return WorkerDir(self.workers_folder / f"{self.id}-w{index}")

    def create_worker(self, index: int) -> RunDir:
        """Create a worker's folder, with a link to the shared log folder."""
        run = self.worker(index)
        run.path.mkdir(mode=0o700, exist_ok=True)
        if not (link := run.path / "logs").is_symlink():
            link.symlink_to("../../logs")
        return run

    def workers(self) -> list[RunDir]:
        """Return all workers that were ever started, by their index."""
        named = re.compile(rf"{re.escape(self.id)}-w(\d{{1,9}})")
        found = {name: named.fullmatch(name) for name in safe_files.names(self.workers_folder, self.path)}
        indices = sorted(int(match[1]) for match in found.values() if match)
        return [run for index in indices if safe_files.is_folder((run := self.worker(index)).path)]

    def trial(self, trial_id: str, execution: int = 0, retry: int = 0) -> RunDir:
        """Return a trial's run: execution number `execution`, from 0; after failures of its `retry`-th new attempt."""
        name = trial_id + (f"-retry{retry}" if retry else "") + (f".{execution + 1}" if execution else "")
        return RunDir(self.trials_folder / name)

    def best(self, trial_id: str) -> RunDir:
        """Return the run that evaluates a trial's best model."""
        return RunDir(self.path / "best" / trial_id)


def search_of(run: RunDir | RunRecord) -> SearchDir | None:
    """Return the search in a run's directory; None if it is an ordinary run."""
    search = SearchDir(run.path)
    return search if safe_files.is_folder(search.workers_folder) else None
