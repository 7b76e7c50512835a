"""Where each record of a search lies.

run.yaml           the resolved config, the search's own settings included
submissions.jsonl  when the search was started, and with what code
state.json         the oracle, its trials and who works on which; changed under the lock
lock, lock.kind    see `lock`
workers/           a folder a worker: an ordinary run's records of a job, and `alive`, touched while it lives
trials/            a run directory a trial; further ones for repeated executions and retries
best/              run directories of the best trials' models, evaluated
result.json        written once, when every trial has been told
logs/              what the workers printed
arrays/            a folder a job array: which of its tasks is which worker
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from truba_runner.runs.run_directory import RunDir
from truba_runner.storage import safe_files


@dataclass(frozen=True)
class WorkerDir(RunDir):
    """The records of a worker. What it prints lies with what the others do, and so a link in its folder says."""

    @property
    def logs(self) -> Path:
        """The search's."""
        return self.path.parent.parent / "logs"


@dataclass(frozen=True)
class SearchDir(RunDir):
    """The records of one search; `id` is `NAME-HASH`, or what `sweep.directory` calls it."""

    @property
    def state_file(self) -> Path:
        """JSON, replaced atomically."""
        return self.path / "state.json"

    @property
    def workers_folder(self) -> Path:
        """A folder a worker."""
        return self.path / "workers"

    @property
    def trials_folder(self) -> Path:
        """A run directory a trial."""
        return self.path / "trials"

    def create(self) -> None:
        """Makes the directory and its folders, readable by their owner alone."""
        super().create()
        for folder in (self.workers_folder, self.trials_folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    def worker(self, index: int) -> RunDir:
        """The records of worker number `index`; it is named after the search, as the queue and `ps` show it."""
        return WorkerDir(self.workers_folder / f"{self.id}-w{index}")

    def create_worker(self, index: int) -> RunDir:
        """Makes a worker's folder; all workers' logs lie together."""
        run = self.worker(index)
        run.path.mkdir(mode=0o700, exist_ok=True)
        if not (link := run.path / "logs").is_symlink():
            link.symlink_to("../../logs")
        return run

    def workers(self) -> list[RunDir]:
        """Those that were ever started, by their number."""
        named = re.compile(rf"{re.escape(self.id)}-w(\d{{1,9}})")
        found = {name: named.fullmatch(name) for name in safe_files.names(self.workers_folder, self.path)}
        indices = sorted(int(match[1]) for match in found.values() if match)
        return [run for index in indices if safe_files.is_folder((run := self.worker(index)).path)]

    def trial(self, trial_id: str, execution: int = 0, retry: int = 0) -> RunDir:
        """The run of a trial: its first execution, or a further one; after failures, its `retry`-th new attempt."""
        name = trial_id + (f"-retry{retry}" if retry else "") + (f".{execution + 1}" if execution else "")
        return RunDir(self.trials_folder / name)

    def best(self, trial_id: str) -> RunDir:
        """The run that evaluates a trial's best model."""
        return RunDir(self.path / "best" / trial_id)


def search_of(run: RunDir) -> SearchDir | None:
    """The same directory as a search's; None where it is an ordinary run's."""
    search = SearchDir(run.path)
    return search if safe_files.is_folder(search.workers_folder) else None
