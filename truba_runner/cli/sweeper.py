"""Entry point of the job that runs a Hydra sweeper."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from truba_runner.cli import main as cli
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import commands, job_environment, jobs
from truba_runner.storage import private
from truba_runner.sweeps.sweeper_job import INSIDE
from truba_runner.training.interrupt import ignore_signals, leave


def main(arguments: list[str]) -> int:
    """Run the recorded command line of the sweep; return its exit status. USR2 or TERM requeues the job."""
    run = RunDir(Path(arguments[0]))
    if private.refused([run.path]):
        return 1
    intent: dict[str, Any] = next(event for event in reversed(run.submissions()) if event["event"] == "intent")
    job_id = job_environment.current().job_id

    def go_on_later(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        if jobs.would_end_for_good(job_id):
            commands.requeue(job_id)
        leave(128 + signal.SIGTERM)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, go_on_later)
    # The variables of this job must not reach the jobs that it submits.
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SRUN_", "SBATCH_"))]:
        del os.environ[name]
    # Variables of the submitting command; earlier versions recorded none.
    os.environ.update(intent.get("variables", {}))
    os.environ[INSIDE] = "1"
    os.chdir(intent["project"])
    return cli.main(intent["command"])


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
