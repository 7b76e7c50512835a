"""Propose a time limit for `resources.time=auto` from the epoch times of earlier runs of the same experiment."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner.config import recipe
from truba_runner.config.durations import time_limit
from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem, Refused
from truba_runner.language import _, counted
from truba_runner.runs.run_directory import RunDir

# Factor on the 90th percentile of the epoch times: nodes and the load on the shared disk vary.
_MARGIN = 1.3


@dataclass(frozen=True)
class Measured:
    """Seconds of each epoch of an earlier run, and what it ran on."""

    run: str
    epoch_seconds: Sequence[float]
    partition: str
    devices: int

    @property
    def ran_on(self) -> str:
        """Partition and number of devices, for the user."""
        devices = counted("{count} GPU", "{count} GPUs", self.devices)
        return f"{self.partition}, {devices}" if self.partition else devices


@dataclass(frozen=True)
class Proposal:
    """Time limit in minutes, and the measurements behind it, for the user."""

    minutes: int
    because: str


def proposed(experiment: Experiment) -> Proposal:
    """Return a limit that suffices for all of an experiment's epochs in one job.

    It uses earlier runs on the same partition with as many GPUs; if there are none, those with as many GPUs; else all.
    Every epoch is assumed to take the 90th percentile of their epoch times.

    Raises:
        truba_runner.errors.Refused: no earlier run has finished an epoch.
    """
    resources = experiment.resources
    devices = max(1, resources.gpus) * resources.nodes
    known = [one for one in _earlier(experiment) if one.epoch_seconds]
    same_size = [one for one in known if one.devices == devices]
    chosen = [one for one in same_size if one.partition == resources.partition] or same_size or known
    if not chosen:
        raise Refused(
            Problem(
                "resources.time=auto",
                _(
                    "the time is estimated from earlier runs of {name} on {data}, and none has finished an epoch yet.",
                    name=experiment.name,
                    data=experiment.data.name,
                ),
                _("Give a time, for example resources.time=1h: a run that needs longer resumes in another job."),
            )
        )
    seconds = sorted(one for measured in chosen for one in measured.epoch_seconds)
    slow = seconds[math.ceil(0.9 * len(seconds)) - 1]
    epochs = recipe.whole_epochs(experiment.train)
    ran_on = ", ".join(sorted({one.ran_on for one in chosen}))
    runs = counted("{count} earlier run ({ran_on})", "{count} earlier runs ({ran_on})", len(chosen), ran_on=ran_on)
    because = counted("{count} epoch of {slow:.3g} s, the 90th percentile of {known} epochs of {runs}",
                      "{count} epochs of {slow:.3g} s, the 90th percentile of {known} epochs of {runs}",
                      epochs, slow=slow, known=len(seconds), runs=runs)  # fmt: skip
    return Proposal(time_limit(epochs * slow * _MARGIN / 60), because)


def _earlier(experiment: Experiment) -> list[Measured]:
    folder = Path(experiment.cluster.runs_folder)
    found = (RunDir(path.parent) for path in sorted(folder.glob(f"{experiment.name}-*/history.csv")))
    return [measured for run in found if (measured := _measured(run, experiment)) is not None]


def _measured(run: RunDir, experiment: Experiment) -> Measured | None:
    try:
        config = run.read_config()
        same = (config["name"], config["data"]["name"]) == (experiment.name, experiment.data.name)
        resources, rows = config["resources"], csv.DictReader(io.StringIO((run.path / "history.csv").read_text()))
        seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
        devices = max(1, int(resources["gpus"])) * int(resources["nodes"])
    except (OSError, KeyError, TypeError, ValueError):  # Written by another version, or damaged.
        return None
    return Measured(run.id, seconds, str(resources.get("partition", "")), devices) if same else None
