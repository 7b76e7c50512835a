"""Submit a checked run with sbatch so that its job is neither lost nor submitted twice.

Before sbatch, an intent with a unique token is recorded in the run directory, and the job is named after the token;
after sbatch, the job id is recorded. If anything is killed in between, the job name shows whether Slurm has the job.
The job arrays of a sweep are a subclass of `Submission` (sweeps/array.py).
"""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from truba_runner.code import package, provenance, snapshot
from truba_runner.config.durations import parse_minutes
from truba_runner.config.schema import Cluster
from truba_runner.environment import caches, start
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.nodes import exclusion
from truba_runner.nodes.exclusion import Exclusion
from truba_runner.rules.sbatch import refused
from truba_runner.runs.events import Event, Kind
from truba_runner.slurm import batch_script, budget, client, commands, jobs
from truba_runner.slurm.client import SRUN_FAILED
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared, prepare_directory


@dataclass(frozen=True)
class Submission:
    """One sbatch for one run."""

    # The run; for an array, one of its runs, as all request the same resources.
    first: Prepared
    token: str = field(init=False, default_factory=lambda: secrets.token_hex(4))

    @property
    def job_name(self) -> str:
        """Name in the queue, by which the job is found again."""
        return f"{self.first.run.id}.{self.token}"

    @property
    def runs(self) -> Sequence[Prepared]:
        """All runs of the submission."""
        return [self.first]

    @property
    def request(self) -> Request:
        """Resources requested from Slurm."""
        return self.first.request

    @cached_property
    def exclusion(self) -> Exclusion:
        """Nodes that the job must not get: the request's, and those that are known as bad when it is submitted."""
        return exclusion.of_request(self.first.experiment.cluster, self.request)

    @property
    def log_folder(self) -> Path:
        """Folder where Slurm writes the job's log."""
        return self.first.run.logs

    @property
    def array_size(self) -> int:
        """Number of tasks in the job array; 0 for a single job."""
        return 0

    def waits_for(self) -> str:
        """Describe for the user what must end before the job can start; empty if nothing."""
        return ""

    def worker(self) -> str:
        """Return the Python module that the job runs and its arguments, quoted for the shell."""
        return f"{self.first.program} {self.subject()}"

    def subject(self) -> str:
        """Return the arguments that name the job's runs, quoted for the shell."""
        return shlex.quote(str(self.first.run.path))

    def node_check(self) -> list[str]:
        """Return the shell line that checks the nodes of a job on several; on one node the job does so itself."""
        limits, nodes = self.first.experiment.cluster.node_check, self.request.nodes
        if not limits.enabled or nodes == 1:
            return []
        return [batch_script.node_check(self._start().python, self.subject(), nodes, limits.seconds)]

    def parameters(self) -> dict[str, Any]:
        """Return the sbatch parameters under submitit's names."""
        request = replace(self.request, exclude=self.exclusion.exclude)
        parameters = batch_script.parameters(self.job_name, request)
        parameters["additional_parameters"]["chdir"] = str(self.first.run.path.parent)
        return {
            **parameters,
            "setup": [
                *self._start().setup,
                *self._find_package(),
                f"export SLURM_EXIT_ERROR={SRUN_FAILED}",
                # Python imports from the current folder first; in one that others can write to, this is unsafe.
                "cd /",
                *self.node_check(),
            ],
            "teardown": [*batch_script.REQUEUE_OR_EXIT],
            # Since Slurm 22.05, srun does not inherit this from sbatch.
            "srun_args": [f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1"],
        }

    @property
    def _runs_folder(self) -> Path:
        return Path(self.first.experiment.cluster.runs_folder)

    def _start(self) -> start.Start:
        experiment, request = self.first.experiment, self.request
        binds = start.binds(experiment, request, Path.cwd(), self.first.job_file)
        wrapper = package.wrapper(self._runs_folder)
        folders = caches.folders(experiment, request)
        return start.start(experiment.environment, wrapper, binds, gpus=bool(request.gpus), caches=folders)

    def _find_package(self) -> list[str]:
        return package.setup(self.first.experiment.environment, self._runs_folder)

    def script(self) -> str:
        """Return the exact script that sbatch reads."""
        command = f"{self._start().python} -u -m {self.worker()}"
        return batch_script.text(command, self.log_folder, self.parameters(), self.array_size)

    def send(self, lock: int) -> str:
        """Record the intent, submit, record the answer, and return the job id.

        `lock` is the descriptor of the runs folder's lock; sbatch inherits it, so no other command submits meanwhile.

        Raises:
            truba_runner.errors.Refused: Slurm rejects this job.
            truba_runner.errors.Failed: sbatch failed; if Slurm did not answer, the repeated command looks for the job.
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
                    "Slurm does not answer ({message}). Nothing is lost: run the same command again later; it first "
                    "checks whether Slurm has accepted the job after all.",
                    message=error.message,
                ) from error
            words, by_filter = commands.words_of_refusal(error.message)
            self.record(Event(Kind.REFUSED, token=self.token, message=words))
            if not error.refused:
                raise Failed("the job could not be submitted: {error}", error=error) from error
            raise Refused(_refusal(words, by_filter, self.first.experiment.cluster, self.request)) from error
        self.record(Event(Kind.SUBMITTED, token=self.token, job_id=job_id))
        return job_id

    def _sbatch(self, script: str, lock: int) -> str:
        """Submit until Slurm answers; before each new attempt, check whether an earlier one has reached Slurm."""
        for pause_seconds in client.BACKOFF_SECONDS:
            try:
                return self._attempt(script, lock)
            except client.SlurmError as error:
                if not error.transient:
                    raise
                message = _("Slurm does not answer; trying again in {seconds} s", seconds=pause_seconds)
                print(message, file=sys.stderr, flush=True)
                time.sleep(pause_seconds)
            # An attempt that arrives even later becomes a second job of this name; its worker does nothing.
            if taken := jobs.jobs_named(self.job_name):
                return taken[0]
        return self._attempt(script, lock)

    def _attempt(self, script: str, lock: int) -> str:
        """Submit once; if Slurm does not answer, record the time, as it may still accept the job."""
        try:
            return commands.sbatch(script, inherit=(lock,))
        except client.SlurmError as error:
            if error.transient:
                self.record(Event(Kind.UNANSWERED, time.time(), token=self.token))
            raise

    def most(self) -> budget.Asked:
        """Return the most that the submission may use; for a chain of jobs, over the whole time, not one segment."""
        resources = self.first.experiment.resources
        minutes = parse_minutes(resources.time) if resources.segment else self.request.time_minutes
        return budget.Asked(self.request, max(1, self.array_size), minutes)

    def record_intent(self) -> None:
        """Create the run directory and record there that the run is about to be submitted."""
        prepare_directory(self.first)
        self.record(self.intent())

    def intent(self) -> Event:
        """Return the event that announces this submission."""
        return Event(
            Kind.INTENT,
            time.time(),
            token=self.token,
            job_name=self.job_name,
            **provenance.record(self.first.job_file, snapshot.take(self.first.experiment, self.first.job_file)),
            environment=dict(self.first.found),
            request=asdict(self.request),
            sbatch=self.parameters(),
            bad_nodes=self.exclusion.reasons(),
        )

    def record(self, event: Event) -> None:
        """Append an event to the run's submissions."""
        self.first.run.append_submission(event)


def warn_of_cost(submissions: Sequence[Submission]) -> None:
    """Warn if the account's remaining core-hours or GPU-hours may not suffice for these submissions."""
    for warning in budget.warnings([one.most() for one in submissions]):
        warn(warning)


def _refusal(words: str, by_filter: bool, cluster: Cluster, request: Request) -> Problem:
    means = commands.explained(words, cluster.refusals) or (None if by_filter else refused.explained(words, request))
    if means:
        return Problem(words, *means)
    rule = _("the site's submit filter refused the job.") if by_filter else _("Slurm itself refused the job.")
    return Problem(words, rule, _("dry_run=true shows the script that Slurm received."))
