"""From a checked request to a job id: one sbatch for one run or for an array of them, never lost and never doubled.

Before sbatch an intent with a token of its own is on record in each run directory, and the job is named after it; after
sbatch the job id. Whatever is killed in between, the name tells whether Slurm has the job.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

import truba_runner
from truba_runner import provenance, scheduler
from truba_runner.config import Experiment
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.request import Request
from truba_runner.rundir import RunDir

# A job that an interrupted sbatch has asked for shows in the queue within this time.
SETTLE_SECONDS = 10.0
# How long before the time limit Slurm sends its signal.
SIGNAL_SECONDS = 90


@dataclass(frozen=True)
class Prepared:
    """One run, checked and ready to be submitted."""

    experiment: Experiment
    run: RunDir
    request: Request
    job_file: Path
    # The module that the job runs, with the run directory as its argument.
    program: str = "truba_runner.worker"


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
    """One sbatch: its runs, its token, and the folder that leads each array task to its run directory."""

    runs: Sequence[Prepared]
    token: str

    @classmethod
    def of(cls, runs: Sequence[Prepared]) -> Submission:
        """Gives these runs, which want the same resources, a token."""
        return cls(runs, secrets.token_hex(4))

    @property
    def is_array(self) -> bool:
        """Whether it is a job array."""
        return len(self.runs) > 1

    @property
    def job_name(self) -> str:
        """What the queue shows, and what the job is found by."""
        first = self.runs[0]
        label = f"{first.experiment.name}-x{len(self.runs)}" if self.is_array else first.run.id
        return f"{label}.{self.token}"

    @property
    def array_folder(self) -> Path:
        """Holds a link to a run directory for each task of the array, named by its index."""
        return self.runs[0].run.path.parent / ".arrays" / self.token

    def parameters(self) -> dict[str, Any]:
        """In submitit's names."""
        first = self.runs[0]
        request, environment = first.request, first.experiment.environment
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
            "signal_delay_s": SIGNAL_SECONDS,
            "stderr_to_stdout": True,
            "wckey": None,
            "array_parallelism": len(self.runs),
            "additional_parameters": {"chdir": str(first.run.path.parent), "requeue": True},
            "setup": [*environment.setup, *_find_package()],
            # Killed without a word, by a failing node or for its memory: Slurm would not start it again.
            "teardown": ["status=$?", "[ $status -ne 137 ] || scontrol requeue $SLURM_JOB_ID", "exit $status"],
            # From Slurm 22.05 on, srun does not take this over from sbatch.
            "srun_args": [f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1"],
        }  # fmt: skip

    def script(self) -> str:
        """Exactly what sbatch reads."""
        first = self.runs[0]
        python = first.experiment.environment.python or shlex.quote(sys.executable)
        home = self.array_folder / "%a" if self.is_array else first.run.path
        address = f"{shlex.quote(str(self.array_folder))}/$SLURM_ARRAY_TASK_ID" if self.is_array else (
            shlex.quote(str(first.run.path))
        )  # fmt: skip
        executor = _Script(folder=home / "logs", python=python)
        executor.update_parameters(**self.parameters())
        command = f"{python} -u -m {first.program} {address}"
        return executor.text(command, len(self.runs) if self.is_array else 0)

    def send(self, lock: int) -> list[str]:
        """Records the intent, submits, records the answer; returns a job id for each run.

        `lock` is the runs folder's; sbatch inherits it, so that no other command decides while one is under way.

        Raises:
            Refused: Slurm will not have this job.
            Failed: Slurm did not answer; whether it has the job shows when the same command is given again.
        """
        script = self.script()
        self._record_intent()
        try:
            job_id = self._sbatch(script, lock)
        except scheduler.SlurmError as error:
            if error.transient:
                raise Failed(
                    f"Slurm does not answer ({error.message}). Nothing is lost: give the same command again later; it "
                    "first looks whether Slurm has taken the job after all."
                ) from error
            for prepared in self.runs:
                prepared.run.append_submission({"event": "refused", "token": self.token, "message": error.message})
            if not error.refused:
                raise Failed(f"the job could not be submitted: {error}") from error
            raise Refused(_refusal(error)) from error
        return self.record_job(job_id)

    def _sbatch(self, script: str, lock: int) -> str:
        """Submits until Slurm has answered; before each new attempt, looks whether an earlier one was taken."""
        for pause_seconds in scheduler.BACKOFF_SECONDS:
            try:
                return scheduler.sbatch(script, inherit=(lock,))
            except scheduler.SlurmError as error:
                if not error.transient:
                    raise
                print(f"Slurm does not answer; trying again in {pause_seconds} s", file=sys.stderr, flush=True)
                time.sleep(pause_seconds)
            # One that arrives later still is a second job of this name: the worker of such a one does nothing.
            if taken := scheduler.jobs_named(self.job_name):
                return taken[0]
        return scheduler.sbatch(script, inherit=(lock,))

    def _record_intent(self) -> None:
        common = {
            "event": "intent",
            "time": time.time(),
            "token": self.token,
            "job_name": self.job_name,
            **provenance.record(self.runs[0].job_file),
            "request": asdict(self.runs[0].request),
            "sbatch": self.parameters(),
        }
        if self.is_array:
            self.array_folder.mkdir(mode=0o700, parents=True)
        for index, prepared in enumerate(self.runs):
            prepare_directory(prepared)
            if self.is_array:
                os.symlink(prepared.run.path, self.array_folder / str(index))
            prepared.run.append_submission({**common, "array_index": index if self.is_array else None})

    def record_job(self, job_id: str) -> list[str]:
        """Records the job's id in each run directory."""
        job_ids = [f"{job_id}_{index}" if self.is_array else job_id for index in range(len(self.runs))]
        for prepared, own_id in zip(self.runs, job_ids, strict=True):
            prepared.run.append_submission({"event": "submitted", "token": self.token, "job_id": own_id})
        return job_ids


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
    events = run.submissions()
    intent = next((event for event in reversed(events) if event["event"] == "intent"), None)
    if intent is None:
        return None
    for event in reversed(events):
        if event.get("token") == intent["token"] and event["event"] == "submitted":
            return str(event["job_id"])
        if event.get("token") == intent["token"] and event["event"] in {"refused", "lost"}:
            return None
        if event["event"] == "started" and event.get("job_name") == intent["job_name"]:
            return str(event["job_id"])
    return _adopt(run, intent)


def _adopt(run: RunDir, intent: dict[str, Any]) -> str | None:
    """Looks for an intent's job in the queue, for as long as it may still be on its way there."""
    while True:
        age_seconds = time.time() - intent["time"]
        if taken := scheduler.jobs_named(intent["job_name"]):
            index = intent.get("array_index")
            job_id = taken[0] if index is None else f"{taken[0]}_{index}"
            run.append_submission({"event": "submitted", "token": intent["token"], "job_id": job_id, "adopted": True})
            return job_id
        if age_seconds > SETTLE_SECONDS:
            run.append_submission({"event": "lost", "token": intent["token"]})
            return None
        time.sleep(0.5)


def _refusal(error: scheduler.SlurmError) -> Problem:
    message = " ".join(line.removeprefix("sbatch: error: ") for line in error.message.splitlines())
    return Problem(message, "Slurm itself refused the job.", "dry_run=true shows the script that it was given.")


def _find_package() -> list[str]:
    """Shell that lets the job's Python find this package where it was not installed but checked out."""
    root = Path(truba_runner.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return []
    return [f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}"]
