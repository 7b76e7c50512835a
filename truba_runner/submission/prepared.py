"""A checked run, ready to be submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.request import Request


@dataclass(frozen=True)
class Prepared:
    """One run, checked and ready to be submitted."""

    experiment: Experiment
    run: RunDir
    request: Request
    job_file: Path
    # The module that the job runs, with the run directory as its argument.
    program: str = "truba_runner.worker"
    # What the job's environment was found to hold (probe.py).
    found: Mapping[str, Any] = field(default_factory=dict)
    # What has to be done before it can start: the run that looks for its learning rate.
    finder: Prepared | None = None


def prepare_directory(prepared: Prepared) -> None:
    """Makes the run directory and freezes the config in it."""
    prepared.run.create()
    prepared.run.write_config(asdict(prepared.experiment))
