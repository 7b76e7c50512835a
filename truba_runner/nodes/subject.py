"""The runs whose job this is, from the arguments of the job's commands: RUN_DIR, or SWEEP_DIR TOKEN in an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truba_runner.config.schema import Experiment, experiment_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir, intent_of, runs_of_task


@dataclass(frozen=True)
class Subject:
    """The unfinished runs of a job, which share its nodes; `experiment` is that of the first."""

    runs: Sequence[RunDir]
    experiment: Experiment


def subject_of(arguments: Sequence[str]) -> Subject | None:
    """Return the runs that this job has still to train; None if there are none.

    Raises:
        truba_runner.errors.Failed: the sweep's record does not have the submission.
        OSError: a record cannot be read.
    """
    if len(arguments) == 1:
        runs = [RunDir(Path(arguments[0]).resolve())]
    else:
        sweep, token = SweepDir(Path(arguments[0])), arguments[1]
        runs = runs_of_task(sweep, intent_of(sweep, token), int(os.environ["SLURM_ARRAY_TASK_ID"]))
        runs = [run for run in runs if run.is_last_given_to(token)]
    runs = [run for run in runs if not run.result()]
    return Subject(runs, experiment_from(runs[0].read_config())) if runs else None
