"""Start short trainings in their own processes, wait for them, and compare them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.runs.checkpoints import CheckpointStore
from truba_runner.runs.events import Event, Kind, as_record
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training import backend
from truba_runner.training.nursery import Call, Nursery
from truba_runner.training.ranks import handover
from truba_runner.verify.child import Order, read_metrics
from truba_runner.verify.plan import TRAINING, Break, breaks, most_steps, shortened

UNDISTURBED, INTERRUPTED, AGAIN = "undisturbed", "interrupted", "again"
NOTE = _FOLDER = "verify"
_LIMIT_MINUTES = 60.0
_POLL_SECONDS = 0.2
_LINES_SHOWN = 40
# Added to the job id, from which ports are derived: other ports than the job's own training.
_OTHER_JOB = 4000


class Starts:
    """The short trainings of one rank, one after the other; all ranks start theirs in the same order."""

    def __init__(self, run: RunDir, experiment: Experiment, here: Allocation) -> None:
        """Start nothing before `opened`."""
        self._run, self._train, self._backend = run, experiment.train, experiment.job.backend
        self._short, self._here = shortened(experiment), here
        self._rank = handover.Rank.here(here.rank, here.tasks)
        self._folder = run.path / _FOLDER
        self._log = self._folder / f"log-{here.rank}"
        self._nursery = Nursery({})
        self._count = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create the trainings' folder in the run directory (first delete a killed start's); delete it on exit."""
        self._by_rank_0("folder", self._make_folder)
        try:
            yield
        finally:
            self._nursery.close()
            if self._here.rank == 0:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _make_folder(self) -> str:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        for name in (UNDISTURBED, INTERRUPTED, AGAIN):
            one = RunDir(self._folder / name)
            one.create()
            one.write_config(asdict(self._short))
            for event in _about_the_rate(self._run):
                one.append_submission(event)
        return ""

    # -- trainings ---------------------------------------------------------------------------------------------

    def breaks(self, validated: Sequence[int]) -> list[Break]:
        """Return where to interrupt a training, from the steps of the undisturbed one."""

        def planned() -> str:
            steps: dict[int, list[int]] = {}
            for position in read_metrics(self._metrics_file(UNDISTURBED)):
                if position.step:
                    steps.setdefault(position.epoch + 1, []).append(position.step)
            store = CheckpointStore(RunDir(self._folder / UNDISTURBED).checkpoints)
            saves = any(position.step for position in store.positions())
            return json.dumps([asdict(one) for one in breaks(self._train, steps, saves, validated)])

        return [Break(**one) for one in json.loads(self._by_rank_0("breaks", planned))]

    def train(self, name: str, stop: Break | None = None) -> dict[str, Any]:
        """Start the training `name`; return how it `ended` and the epochs it `validated`, or why it `failed`."""
        order = Order(
            str(self._folder / name),
            str(self._metrics_file(name)),
            as_record(self._run.submitted()),
            most_steps(self._train),
            self._here.rank,
            self._here.tasks,
            asdict(stop) if stop else None,
        )
        ended = self._call("train", [asdict(order)])
        value: dict[str, Any] = ended["value"] or {}
        # If several ranks are killed, one may fail because of another before it is killed.
        was_killed = ended["status"] < 0 or (self._here.tasks > 1 and "ended" not in value)
        if stop is not None and stop.kind == TRAINING and was_killed:
            return {"ended": "killed"}
        if not value:
            value = {"failed": _("its process ended with exit status {status}", status=ended["status"])}
        if "failed" in value:
            self._show_log()
        return value

    def differences(self, name: str) -> list[dict[str, Any]]:
        """Return the differences between the undisturbed training and another, from `child.compare`.

        Raises:
            truba_runner.errors.Failed: the comparison failed.
        """
        names = (UNDISTURBED, name)

        def compared() -> str:
            folders, files = [str(self._folder / one) for one in names], [str(self._metrics_file(one)) for one in names]
            ended = self._call("compare", [self._backend, folders, files])
            if ended["status"]:
                self._show_log()
                raise Failed("checkpoint.verify: the trainings could not be compared; the log shows why")
            return json.dumps(ended["value"])

        found: list[dict[str, Any]] = json.loads(self._by_rank_0(name, compared))
        return found

    # -- processes ---------------------------------------------------------------------------------------------

    def _call(self, function: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """Call a function of `child` in a process; return its `status` and `value`."""
        self._count += 1
        environment = {}
        if self._here.tasks > 1:
            # Another port for each process: the last one's may not be free yet.
            environment["SLURM_JOB_ID"] = str(int(os.environ["SLURM_JOB_ID"]) + _OTHER_JOB + self._count)
        imports = backend.imports(self._backend)
        self._nursery.start(
            Call("truba_runner.verify.child", function, arguments, imports, environment, str(self._log))
        )
        until = time.monotonic() + 60 * _LIMIT_MINUTES
        while (ended := self._nursery.ended(_POLL_SECONDS)) is None:
            if time.monotonic() > until:
                self._show_log()
                raise Failed(
                    "checkpoint.verify: a start of a short training took longer than {minutes:g} minutes. If that is "
                    "how long it takes, set checkpoint.verify=false.",
                    minutes=_LIMIT_MINUTES,
                )
        return ended

    def _by_rank_0(self, what: str, make: Callable[[], str]) -> str:
        return handover.by_one(self._rank, self._run.path, f"{NOTE}-{what}", make)

    def _metrics_file(self, name: str) -> Path:
        return self._folder / f"{name}-told-{self._here.rank}"

    def _show_log(self) -> None:
        if not self._log.exists():
            return
        with self._log.open(errors="replace") as file:
            lines = deque(file, _LINES_SHOWN)
        for line in lines:
            print_error(f"verify: {line}".rstrip("\n"))


def _about_the_rate(run: RunDir) -> Iterator[Event]:
    """Yield the events on a learning-rate finder of another job or an earlier start, which a short training needs."""
    if finder := run.finder():
        yield Event(Kind.LOCAL, time.time(), "verify", finder=str(finder.path))
    if (found := run.found_rate()).kind:
        yield found
