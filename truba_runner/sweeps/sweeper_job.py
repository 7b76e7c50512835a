"""Run a sweeper that waits for values as a small job, so that no process stays on the login node.

The job repeats the command on its compute node, and stays until the last run has ended. If it is interrupted, it
starts again from the beginning: finished runs give their values at once, and live ones are waited for.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from truba_runner.config.schema import Code, Environment, Experiment, Resources, Sweep
from truba_runner.language import _
from truba_runner.rules.experiment import plan
from truba_runner.runs.state import last_job_id
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.storage import folder_lock
from truba_runner.submission import messages
from truba_runner.submission.already import already
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission, warn_of_cost

# Variable that marks the command as the one inside the job.
INSIDE = "TRUBA_SWEEPER_JOB"


class SweeperSubmitted(BaseException):
    """Raised to leave the sweeper of this command; a BaseException, which no sweeper takes for a failed run."""


@dataclass(frozen=True)
class SweeperSubmission(Submission):
    """Submission of the sweeper's job; its records are in the sweep's folder, in the form of a run directory."""

    command: list[str] = field(default_factory=list)

    def worker(self) -> str:
        """Return the Python module that the job runs and its argument, quoted for the shell."""
        return f"truba_runner.cli.sweeper {self.subject()}"

    def node_check(self) -> list[str]:
        """Return no lines: this job trains nothing, and the jobs of its runs check their own nodes."""
        return []

    def record_intent(self) -> None:
        """Record the intent, with the sweeper's command, in the sweep's folder."""
        self.first.run.create()
        self.record(replace(self.intent(), command=self.command))


def resources_of(sweep: Sweep, runs: Resources) -> Resources:
    """Return the resources of the sweeper's job; `runs`: those of its runs, whose account it uses."""
    return Resources(
        sweep.sweeper_partition, gpus=0, time=sweep.sweeper_time, account=runs.account, qos=sweep.sweeper_qos
    )


def submit(experiment: Experiment, job_file: Path, sweep: SweepDir) -> None:
    """Submit the command as a job unless its job is live already, and print the job id.

    Raises:
        SweeperSubmitted: always, once Slurm has the job.
        truba_runner.errors.Refused: the partition does not accept such a job.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    resources = resources_of(experiment.sweep, experiment.resources)
    request = plan(replace(experiment, resources=resources)).request
    run = sweep.sweeper
    with folder_lock.lock(sweep.runs_folder) as held:
        running = already([run])
        if running:
            job_id = last_job_id(run)
        else:
            # The job needs the environment of this command, with Slurm's commands, not that of a training; no
            # snapshot, as its runs take their code from the project.
            own = {"environment": Environment("inherit"), "code": Code(snapshot=False), "resources": resources}
            prepared = Prepared(replace(experiment, **own), run, request, job_file)  # type: ignore[arg-type]
            submission = SweeperSubmission(prepared, command=sys.argv[1:])
            warn_of_cost([submission])
            job_id = submission.send(held)
    if running:
        print(
            _(
                "the sweeper is in the queue or running already, as job {job_id} on {partition}",
                job_id=job_id,
                partition=request.partition,
            )
        )
    else:
        print(_("the sweeper was submitted as job {job_id} on {partition}", job_id=job_id, partition=request.partition))
        messages.bad_nodes(submission)
    print(f"  truba status {sweep.id}")
    raise SweeperSubmitted


if __name__ == "__main__":  # Jobs that an earlier version submitted start it by this name.
    runpy.run_module("truba_runner.cli.sweeper", run_name="__main__")
