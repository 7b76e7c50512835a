"""Definition of a checked run that is ready to be submitted."""

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
    # Versions in the job's environment (environment/probe.py); empty if unknown.
    found: Mapping[str, Any] = field(default_factory=dict)
    # The run that must first find this run's learning rate.
    finder: Prepared | None = None


def prepare_directory(prepared: Prepared) -> None:
    """Create the run directory and write the config to it."""
    prepared.run.create()
    prepared.run.write_config(asdict(prepared.experiment))
