"""Entry point of the job that runs a Hydra sweeper."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from truba_runner.cli import main as cli
from truba_runner.log import print_error
from truba_runner.runs.events import last_intent
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
    intent = last_intent(run.submissions())
    job_id = job_environment.current().job_id

    def go_on_later(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        if not intent.request.get("requeue", True):
            with suppress(RuntimeError):  # The signal may have come while something was being printed.
                print_error("interrupted; this site does not requeue jobs: the same command resumes the run")
        elif jobs.would_end_for_good(job_id):
            commands.requeue(job_id)
        leave(128 + signal.SIGTERM)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, go_on_later)
    # The command must run as on a login node, without the variables of this job.
    for name in os.environ.keys() - job_environment.without_slurms(os.environ).keys():
        del os.environ[name]
    os.environ[INSIDE] = "1"
    os.chdir(intent.project)
    return cli.main(list(intent.command))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
