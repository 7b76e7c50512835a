"""A sweeper that waits for values, as a small job: nothing of it stays on the login node.

The job gives the same command once more, on its compute node, and stays until the last run has ended. Interrupted, it
starts again from the beginning: runs that are finished give their values at once, and live ones are waited for.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from truba_runner.config.schema import Code, Environment, Experiment, Resources
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.rules.experiment import plan
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm import client, jobs
from truba_runner.storage import folder_lock
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.settle import settle
from truba_runner.submission.submission import Submission, warn_of_cost

# Says to the command that it is the job's.
INSIDE = "TRUBA_SWEEPER_JOB"
# By these every command of Slurm finds its cluster.
_FINDS_SLURM = ("SLURM_CONF", "SLURM_CLUSTERS")


class SweeperSubmitted(BaseException):
    """Takes the command out of the sweeper that it has begun; no sweeper takes it for a failed run."""


@dataclass(frozen=True)
class SweeperSubmission(Submission):
    """The sbatch of such a job. Its records lie in the sweep's folder, as those of a run in the run directory."""

    command: list[str] = field(default_factory=list)

    def worker(self) -> str:
        """The Python module that the job runs."""
        return f"truba_runner.cli.sweeper {shlex.quote(str(self.first.run.path))}"

    def record_intent(self) -> None:
        """Puts on record, beside the sweep's runs, what the job is to do."""
        self.first.run.create()
        self.record({**self.intent(), "command": self.command, "variables": _given_to_sbatch(os.environ)})


def _given_to_sbatch(environment: Mapping[str, str]) -> dict[str, str]:
    """What the shell has for sbatch, such as the quality of service that a site asks for: the runs need it as well."""
    return {name: value for name, value in environment.items() if name.startswith("SBATCH_") or name in _FINDS_SLURM}


def submit(experiment: Experiment, job_file: Path, sweep: SweepDir) -> None:
    """Hands the command to Slurm, unless it has it already; says so.

    Raises:
        SweeperSubmitted: it has it now.
        Refused: the partition takes no such job.
        Failed: Slurm does not answer.
    """
    asked = experiment.sweep
    resources = Resources(
        asked.sweeper_partition, gpus=0, time=asked.sweeper_time, account=experiment.resources.account
    )
    request = plan(replace(experiment, resources=resources)).request
    run = sweep.sweeper
    with folder_lock.lock(sweep.runs_folder) as held:
        try:
            live = settle(run) is not None and state_of(run, jobs.queue()).live
        except client.SlurmError as error:
            told = _(
                "Slurm does not answer ({message}), so whether the sweeper runs is not known", message=error.message
            )
            raise Failed(told) from error
        if live:
            job_id = last_job_id(run)
        else:
            # It needs what this command needs, Slurm's commands too, and not what a training does; each of its runs
            # has its code from the project.
            own = {"environment": Environment("inherit"), "code": Code(snapshot=False), "resources": resources}
            prepared = Prepared(replace(experiment, **own), run, request, job_file)  # type: ignore[arg-type]
            submission = SweeperSubmission(prepared, command=sys.argv[1:])
            warn_of_cost([submission])
            job_id = submission.send(held)
    if live:
        print(_("the sweeper is job {job_id} on {partition}", job_id=job_id, partition=request.partition))
    else:
        print(_("the sweeper was submitted as job {job_id} on {partition}", job_id=job_id, partition=request.partition))
    print(f"  truba status {sweep.id}")
    raise SweeperSubmitted


if __name__ == "__main__":  # A job that an earlier version has put into the queue starts it by this name.
    runpy.run_module("truba_runner.cli.sweeper", run_name="__main__")
