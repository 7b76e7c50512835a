"""Run a short training in its own process, interrupted on purpose if asked, and compare two such trainings.

A training writes the metrics of each step and epoch, one line each, to a file next to its run directory.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.code.unpacked import SubmittedCode
from truba_runner.config import partitions
from truba_runner.config.schema import experiment_from
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import from_record
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.training import backend as backends
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.verify.plan import EPOCH_END, TRAINING, VALIDATION, Break

FINISHED, INTERRUPTED = "finished", "interrupted"
_POLL_SECONDS, _SAVE_SECONDS = 0.01, 600.0


@dataclass(frozen=True)
class Order:
    """What a process has to train: the run directory `folder`, with the code of the submission `record`.

    `metrics_file`: the file for the metrics; `most_steps`: limit of an epoch; `stop`: the `Break` as a dict.
    """

    folder: str
    metrics_file: str
    record: Mapping[str, Any]
    most_steps: int
    rank: int = 0
    tasks: int = 1
    stop: Mapping[str, Any] | None = None


# -- a training ------------------------------------------------------------------------------------------------


def train(order: Mapping[str, Any]) -> dict[str, Any]:
    """Train as a worker does; return how the training `ended` and which epochs it `validated`.

    Raises:
        truba_runner.errors.Failed: the backend's training failed.
    """
    training = Order(**order)
    run = RunDir(Path(training.folder))
    os.chdir(run.path)
    experiment = experiment_from(run.read_config())
    watch = _Watch(Path(training.metrics_file), run, training.rank, Break(**training.stop) if training.stop else None)
    # The backend first: it sets up its framework, which the job then imports.
    work = backends.load(experiment.job.backend)
    ended = FINISHED
    with SubmittedCode() as code:
        job = code.load(from_record(training.record), partitions.scratch_of(experiment))
        progress, asking = _WatchedProgress(run, watch, training.rank), _Asking(watch)
        try:
            work(
                backends.Context(
                    experiment,
                    job,
                    run,
                    progress,
                    asking,
                    training.rank,
                    training.tasks,
                    most_steps=training.most_steps,
                )
            )
        except Interrupted:
            ended = INTERRUPTED
    return {"ended": ended, "validated": watch.validated}


class _Watch:
    """Follows a training, writes its metrics to a file, and interrupts it at its Break."""

    def __init__(self, metrics_file: Path, run: RunDir, rank: int, stop: Break | None) -> None:
        self._metrics_file, self._run, self._rank, self._stop = metrics_file, run, rank, stop
        self._epoch = self._step = self._looks = 0
        self.validated: list[int] = []
        # Shared with the Interruption: the signals it has received.
        self.received: list[int] = []

    def trained(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        self._epoch, self._step, self._looks = epoch, step, 0
        self._tell(Position(epoch - 1, step), metrics)
        if self._is_at(TRAINING):
            self._end_by_kill()

    def epoch_ended(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        self._epoch, self._step, self._looks = epoch, 0, 0
        self._tell(Position(epoch, 0), metrics)
        if self._is_at(EPOCH_END):
            self._interrupt()

    def looked(self) -> None:
        """Count checks for signals: the first after a step is the training's, later ones are the validation's."""
        self._looks += 1
        if not self._step or self._looks < 2:
            return
        if self._epoch not in self.validated:
            self.validated.append(self._epoch)
        if self._is_at(VALIDATION):
            self._interrupt()

    def _is_at(self, kind: str) -> bool:
        stop = self._stop
        return stop is not None and kind == stop.kind and self._epoch == stop.epoch and self._step >= stop.step

    def _interrupt(self) -> None:
        if signal.SIGUSR2 not in self.received:
            self.received.append(signal.SIGUSR2)

    def _end_by_kill(self) -> None:
        assert self._stop is not None  # noqa: S101
        until, saved = time.monotonic() + _SAVE_SECONDS, Position(*self._stop.saved)
        while self._rank == 0 and CheckpointStore(self._run.checkpoints).position() < saved:
            if time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    def _tell(self, position: Position, metrics: Mapping[str, Any]) -> None:
        line = json.dumps([position.epoch, position.step, dict(metrics)], default=str)
        with self._metrics_file.open("a") as file:
            file.write(line + "\n")


class _WatchedProgress(Progress):
    """Progress that also notifies the _Watch."""

    def __init__(self, run: RunDir, watch: _Watch, rank: int) -> None:
        super().__init__(run, "rehearsal", writes=rank == 0)
        self._watch = watch

    def step(self, epoch: int, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        super().step(epoch, step, metrics, total)
        self._watch.trained(epoch, step, metrics)

    def epoch_end(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        super().epoch_end(epoch, step, metrics)
        self._watch.epoch_ended(epoch, metrics)


class _Asking(Interruption):
    """Interruption that notifies the _Watch whenever the training checks for signals."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch, self.received = watch, watch.received

    @property
    def requested(self) -> bool:
        self._watch.looked()
        return super().requested


# -- two trainings ---------------------------------------------------------------------------------------------


def read_metrics(file: Path) -> dict[Position, dict[str, Any]]:
    """Return the metrics of each step and epoch, by position; the later ones if a step was trained twice."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {Position(epoch, step): metrics for epoch, step, metrics in lines}


def compare(backend: str, folders: Sequence[str], metrics_files: Sequence[str]) -> list[dict[str, Any]]:
    """Return all differences between two trainings by position; at each, metrics before state.

    Each is a dict of `position`, `path`, `index`, and `values`, both values as text.
    """
    from truba_runner.training.walk import differences

    read = backends.reader(backend)
    runs, steps = [RunDir(Path(folder)) for folder in folders], [read_metrics(Path(file)) for file in metrics_files]
    stores = [CheckpointStore(run.checkpoints) for run in runs]
    # Only common positions: if a stream ends within an execution, its last step is known only after that.
    steps_of_both = steps[0].keys() & steps[1].keys()
    saved = set(stores[0].positions()) & set(stores[1].positions())
    all_differences = []
    for position in sorted(steps_of_both | saved):
        sides: list[tuple[Any, Any]] = []
        if position in steps_of_both:
            sides.append(({"metrics": steps[0][position]}, {"metrics": steps[1][position]}))
        if position in saved:
            sides.append((stores[0].at(position, read), stores[1].at(position, read)))
        for one, other in sides:
            for leaf in differences.between(one, other, (folders[0], folders[1])):
                where = {"position": [position.epoch, position.step], "path": leaf.path}
                all_differences.append({**where, "index": leaf.index, "values": [leaf.one, leaf.other]})
    return all_differences
