"""From a checked request to a job id, never lost and never doubled.

Before sbatch an intent with a token of its own is on record in the run directory, and the job is named after it; after
sbatch the job id. Whatever is killed in between, the name tells whether Slurm has the job. The arrays of a sweep are a
`Submission` of another kind (sweeps/array.py).
"""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truba_runner.code import package, provenance, snapshot
from truba_runner.config.durations import parse_minutes
from truba_runner.environment import start
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.slurm import budget, client, commands, jobs
from truba_runner.slurm.batch_script import MOST_RESTARTS, NEVER_BEGUN, REQUEUE, Script
from truba_runner.slurm.client import SRUN_FAILED
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared, prepare_directory


@dataclass(frozen=True)
class Submission:
    """One sbatch for one run."""

    # The run; of an array, one of its runs: they want the same of Slurm.
    first: Prepared
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def job_name(self) -> str:
        """What the queue shows, and what the job is found by."""
        return f"{self.first.run.id}.{self.token}"

    @property
    def runs(self) -> Sequence[Prepared]:
        """All of its runs."""
        return [self.first]

    @property
    def request(self) -> Request:
        """What is asked of Slurm."""
        return self.first.request

    @property
    def log_folder(self) -> Path:
        """Where Slurm writes what the job prints."""
        return self.first.run.logs

    @property
    def array_size(self) -> int:
        """How many tasks the job array has; 0: it is none."""
        return 0

    def waits_for(self) -> str:
        """What has to end before it can start, for a person; empty where nothing has."""
        return ""

    def worker(self) -> str:
        """The Python module that the job runs, and what it is told, for the shell."""
        return f"{self.first.program} {shlex.quote(str(self.first.run.path))}"

    def parameters(self) -> dict[str, Any]:
        """In submitit's names."""
        request = self.request
        return {
            "job_name": self.job_name,
            "partition": request.partition,
            "account": request.account,
            "nodes": request.nodes,
            "ntasks_per_node": request.tasks_per_node,
            "cpus_per_task": request.cpus_per_task,
            "gres": f"gpu:{request.gpus}" if request.gpus else None,
            "mem": f"{request.memory_gb * 1024:.0f}M" if request.memory_gb else None,
            "time": request.time_minutes,
            "constraint": request.constraint or None,
            "mail_type": request.mail_type or None,
            "mail_user": request.mail_user or None,
            "signal_delay_s": request.signal_seconds,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"chdir": str(self.first.run.path.parent), "requeue": True},
            "setup": [
                *self._start().setup,
                *self._find_package(),
                f"export SLURM_EXIT_ERROR={SRUN_FAILED}",
                # Python imports from where it starts, before all else: where others may put something it must not.
                "cd /",
            ],
            "teardown": [
                "status=$?",
                REQUEUE,
                "case $status in",
                # Killed without a word, by a failing node or for its memory: Slurm would not start it again.
                "  137) requeue ;;",
                f"  {NEVER_BEGUN}) [ ${{SLURM_RESTART_COUNT:-0}} -ge {MOST_RESTARTS} ] || requeue ;;",
                "esac",
                "exit $status",
            ],
            # From Slurm 22.05 on, srun does not take this over from sbatch.
            "srun_args": [f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1"],
        }  # fmt: skip

    @property
    def _runs_folder(self) -> Path:
        return Path(self.first.experiment.cluster.runs_folder)

    def _start(self) -> start.Start:
        experiment, request = self.first.experiment, self.request
        binds = start.binds(experiment, request, Path.cwd(), self.first.job_file)
        wrapper = package.wrapper(self._runs_folder)
        return start.start(experiment.environment, wrapper, binds, gpus=bool(request.gpus))

    def _find_package(self) -> list[str]:
        return package.setup(self.first.experiment.environment, self._runs_folder)

    def script(self) -> str:
        """Exactly what sbatch reads."""
        python = self._start().python
        executor = Script(folder=self.log_folder, python=python)
        executor.update_parameters(**self.parameters())
        return executor.text(f"{python} -u -m {self.worker()}", self.array_size)

    def send(self, lock: int) -> str:
        """Records the intent, submits, records the answer; returns the job's id.

        `lock` is the runs folder's; sbatch inherits it, so that no other command decides while one is under way.

        Raises:
            Refused: Slurm will not have this job.
            Failed: Slurm did not answer; whether it has the job shows when the same command is given again.
        """
        script = self.script()
        package.provide(self.first.experiment.environment, self._runs_folder)
        snapshot.take(self.first.experiment, self.first.job_file)
        self.record_intent()
        try:
            job_id = self._sbatch(script, lock)
        except client.SlurmError as error:
            if error.transient:
                raise Failed(
                    _(
                        "Slurm does not answer ({message}). Nothing is lost: give the same command again later; it "
                        "first looks whether Slurm has taken the job after all.",
                        message=error.message,
                    )
                ) from error
            self.record({"event": "refused", "token": self.token, "message": error.message})
            if not error.refused:
                raise Failed(_("the job could not be submitted: {error}", error=error)) from error
            raise Refused(_refusal(error)) from error
        self.record({"event": "submitted", "token": self.token, "job_id": job_id})
        return job_id

    def _sbatch(self, script: str, lock: int) -> str:
        """Submits until Slurm has answered; before each new attempt, looks whether an earlier one was taken."""
        for pause_seconds in client.BACKOFF_SECONDS:
            try:
                return self._attempt(script, lock)
            except client.SlurmError as error:
                if not error.transient:
                    raise
                told = _("Slurm does not answer; trying again in {seconds} s", seconds=pause_seconds)
                print(told, file=sys.stderr, flush=True)
                time.sleep(pause_seconds)
            # One that arrives later still is a second job of this name: the worker of such a one does nothing.
            if taken := jobs.jobs_named(self.job_name):
                return taken[0]
        return self._attempt(script, lock)

    def _attempt(self, script: str, lock: int) -> str:
        """Submits once; where Slurm does not answer, when that was is on record: it may still take the job."""
        try:
            return commands.sbatch(script, inherit=(lock,))
        except client.SlurmError as error:
            if error.transient:
                self.record({"event": "unanswered", "time": time.time(), "token": self.token})
            raise

    def most(self) -> budget.Asked:
        """What it may use at the most: a chain of jobs all of its time, whatever one of them asks for."""
        resources = self.first.experiment.resources
        minutes = parse_minutes(resources.time) if resources.segment else self.request.time_minutes
        return budget.Asked(self.request, max(1, self.array_size), minutes)

    def record_intent(self) -> None:
        """Puts on record, where the run will be looked for, that it is about to be submitted."""
        prepare_directory(self.first)
        self.record(self.intent())

    def intent(self) -> dict[str, Any]:
        """The record of a submission that is about to be made."""
        return {
            "event": "intent",
            "time": time.time(),
            "token": self.token,
            "job_name": self.job_name,
            **provenance.record(self.first.job_file, snapshot.take(self.first.experiment, self.first.job_file)),
            "environment": dict(self.first.found),
            "request": asdict(self.request),
            "sbatch": self.parameters(),
        }

    def record(self, event: dict[str, Any]) -> None:
        """Adds to the submission's record."""
        self.first.run.append_submission(event)


def warn_of_cost(submissions: Sequence[Submission]) -> None:
    """Says, before they are made, what the account has no longer left for them."""
    for warning in budget.warnings([one.most() for one in submissions]):
        print(_("warning: {text}", text=warning), file=sys.stderr)


def _refusal(error: client.SlurmError) -> Problem:
    message = " ".join(line.removeprefix("sbatch: error: ") for line in error.message.splitlines())
    return Problem(message, _("Slurm itself refused the job."), _("dry_run=true shows the script that it was given."))
