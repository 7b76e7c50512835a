"""Evaluate the best models of a finished search, and write its best experiment (`truba best`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from truba_runner.code import provenance
from truba_runner.config.schema import Experiment, experiment_from
from truba_runner.errors import Failed
from truba_runner.runs.events import Kind
from truba_runner.search.conclusion import experiment_yaml, prepare_best
from truba_runner.search.directory import SearchDir
from truba_runner.search.state import State
from truba_runner.submission.local import with_package


def experiment_text(search: SearchDir, state: State, trial: Mapping[str, Any]) -> str:
    """Return the text of a file for conf/experiment/ that trains a trial from scratch."""
    return experiment_yaml(search, _experiment(search), state, trial)


def evaluate(search: SearchDir, state: State, trials: Sequence[Mapping[str, Any]]) -> None:
    """Rebuild the models of these trials and evaluate them on the held-out split, in the foreground.

    Raises:
        truba_runner.errors.Failed: a model could not be evaluated.
    """
    code = provenance.passed_on(search.submitted())
    for trial in trials:
        run, _epoch = prepare_best(search, _experiment(search), state, trial)
        if run.result():
            continue
        run.append_submission(replace(code, kind=Kind.LEASED))
        name = f"best-{trial['trial_id']}"
        done = subprocess.run(
            [sys.executable, "-u", "-m", "truba_runner.worker", str(run.path)],
            env=with_package({"TRUBA_JOB_ID": name, "TRUBA_JOB_NAME": name}),
            check=False,
        )
        if done.returncode:
            raise Failed(
                "the model of trial {trial} could not be evaluated; the lines above show why",
                trial=trial["trial_id"],
            )


def _experiment(search: SearchDir) -> Experiment:
    return experiment_from(search.read_config())
