"""From a checked request to a job id, never lost and never doubled.

Before sbatch an intent with a token of its own is on record in the run directory, and the job is named after it; after
sbatch the job id. Whatever is killed in between, the name tells whether Slurm has the job. The arrays of a sweep are a
`Submission` of another kind (sweeps/array.py).
"""

from __future__ import annotations

import secrets
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from truba_runner import budget, environment, events, job_code, provenance, scheduler, snapshot
from truba_runner.config import Experiment
from truba_runner.durations import parse_minutes
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.request import Request
from truba_runner.rundir import RunDir, sweep_events_file
from truba_runner.scheduler import SRUN_FAILED

# A job that an interrupted sbatch has asked for shows in the queue within this time.
SETTLE_SECONDS = 10.0
# A job that has never begun goes back into the queue, unless it has been there so often, for whatever reason.
_MOST_RESTARTS = 10
# How srun ends then: it failed itself, or a signal of Slurm's reached the worker before that listened.
_NEVER_BEGUN = f"{SRUN_FAILED}|{128 + signal.SIGUSR2}|{128 + signal.SIGTERM}"
# Bash. Of an array `job` is one task: the number of the last to start is also the array's, and would mean all of them.
# Slurm may not answer for a while; a job that is cancelled, or back in the queue, is left alone, and so is one whose
# rank at fault has forbidden it.
_REQUEUE = r"""
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
requeue() {
  scontrol show job $job | grep -q Requeue=0 && return
  for pause in 5 20 60 0; do
    state=$(squeue --noheader --jobs=$job --format=%T) && [ "$state" != RUNNING ] && return
    [ "$state" = RUNNING ] && scontrol requeue $job && return
    sleep $pause
  done
}""".strip()


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


class _Script(SlurmExecutor):
    """submitit's check of the parameters and its sbatch text, around our own command.

    Its pickles, their renaming after sbatch (a kill in between loses the job) and its handler, which exits inside the
    signal, are not used.
    """

    @classmethod
    def affinity(cls) -> int:
        """A script can be written, for a dry run, where there is no srun."""
        return 1

    def text(self, command: str, array_size: int) -> str:
        """The script; `array_size` is 0 for a single job."""
        if array_size:
            self.parameters["map_count"] = array_size
        return str(self._make_submission_file_text(command, uid=""))


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
            "setup": [*self._start().setup, *self._find_package(), f"export SLURM_EXIT_ERROR={SRUN_FAILED}"],
            "teardown": [
                "status=$?",
                _REQUEUE,
                "case $status in",
                # Killed without a word, by a failing node or for its memory: Slurm would not start it again.
                "  137) requeue ;;",
                f"  {_NEVER_BEGUN}) [ ${{SLURM_RESTART_COUNT:-0}} -ge {_MOST_RESTARTS} ] || requeue ;;",
                "esac",
                "exit $status",
            ],
            # From Slurm 22.05 on, srun does not take this over from sbatch.
            "srun_args": [f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1"],
        }  # fmt: skip

    @property
    def _runs_folder(self) -> Path:
        return Path(self.first.experiment.cluster.runs_folder)

    def _start(self) -> environment.Start:
        experiment, request = self.first.experiment, self.request
        binds = environment.binds(experiment, request, Path.cwd(), self.first.job_file)
        wrapper = job_code.wrapper(self._runs_folder)
        return environment.start(experiment.environment, wrapper, binds, gpus=bool(request.gpus))

    def _find_package(self) -> list[str]:
        return job_code.setup(self.first.experiment.environment, self._runs_folder)

    def script(self) -> str:
        """Exactly what sbatch reads."""
        python = self._start().python
        executor = _Script(folder=self.log_folder, python=python)
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
        job_code.provide(self.first.experiment.environment, self._runs_folder)
        snapshot.take(self.first.experiment, self.first.job_file)
        self.record_intent()
        try:
            job_id = self._sbatch(script, lock)
        except scheduler.SlurmError as error:
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
        for pause_seconds in scheduler.BACKOFF_SECONDS:
            try:
                return self._attempt(script, lock)
            except scheduler.SlurmError as error:
                if not error.transient:
                    raise
                told = _("Slurm does not answer; trying again in {seconds} s", seconds=pause_seconds)
                print(told, file=sys.stderr, flush=True)
                time.sleep(pause_seconds)
            # One that arrives later still is a second job of this name: the worker of such a one does nothing.
            if taken := scheduler.jobs_named(self.job_name):
                return taken[0]
        return self._attempt(script, lock)

    def _attempt(self, script: str, lock: int) -> str:
        """Submits once; where Slurm does not answer, when that was is on record: it may still take the job."""
        try:
            return scheduler.sbatch(script, inherit=(lock,))
        except scheduler.SlurmError as error:
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


def prepare_directory(prepared: Prepared) -> None:
    """Makes the run directory and freezes the config in it."""
    prepared.run.create()
    prepared.run.write_config(asdict(prepared.experiment))


def settle(run: RunDir) -> str | None:
    """The job id of the run's latest submission, found in the queue where the submission was cut short.

    None: nothing was ever submitted, or Slurm never got it.

    Raises:
        SlurmError: Slurm does not answer.
    """
    told = run.submissions()
    intent = next((event for event in reversed(told) if event["event"] == "intent"), None)
    if intent is None:
        return None
    for event in reversed(told):
        if event.get("token") == intent["token"] and event["event"] == "submitted":
            return str(event["job_id"])
        if event.get("token") == intent["token"] and event["event"] in {"refused", "lost"}:
            return None
        if event["event"] == "started" and event.get("job_name") == intent["job_name"]:
            return str(event["job_id"])
    asked = [
        event["time"] for event in told if event.get("token") == intent["token"] and event["event"] == "unanswered"
    ]
    return _adopt(run, intent, max([intent["time"], *asked]))


def _adopt(run: RunDir, intent: dict[str, Any], asked: float) -> str | None:
    """Looks for an intent's job in the queue, for as long as it may still be on its way there, `asked` for then."""
    # Another node's clock may be ahead: what was asked for in the future is taken for just asked for.
    age_seconds = min(SETTLE_SECONDS, max(0.0, time.time() - asked))
    until = time.monotonic() + SETTLE_SECONDS - age_seconds
    while True:
        if taken := scheduler.jobs_named(intent["job_name"]):
            _answer(run, intent, {"event": "submitted", "job_id": taken[0], "adopted": True})
            return _task(taken[0], intent)
        if time.monotonic() > until:
            _answer(run, intent, {"event": "lost"})
            return None
        time.sleep(0.5)


def _answer(run: RunDir, intent: dict[str, Any], event: dict[str, Any]) -> None:
    """Records what became of an intent: with the sweep's arrays where it is one of them, for all of its runs."""
    told = {**event, "token": intent["token"]}
    if "sweep" in intent:
        events.append(sweep_events_file(run.path.parent, intent["sweep"]), told)
    else:
        run.append_submission({**told, "job_id": _task(told["job_id"], intent)} if "job_id" in told else told)


def _task(job_id: str, intent: dict[str, Any]) -> str:
    """The run's own part of a job array."""
    index = intent.get("array_index")
    return job_id if index is None else f"{job_id}_{index}"


def _refusal(error: scheduler.SlurmError) -> Problem:
    message = " ".join(line.removeprefix("sbatch: error: ") for line in error.message.splitlines())
    return Problem(message, _("Slurm itself refused the job."), _("dry_run=true shows the script that it was given."))
