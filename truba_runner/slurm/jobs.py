"""Query the states and the resource use of jobs with squeue and sacct."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from truba_runner.slurm import client, states
from truba_runner.slurm.client import SlurmError

# Between the columns of squeue and sinfo; no name has it.
SEPARATOR = "\x1f"
# Slurm's messages: it no longer knows the job; the job to be requeued is queued again already.
_UNKNOWN_JOB, BACK_IN_QUEUE = "Invalid job id specified", "Job is pending execution"
# sacct's message on a site without accounting.
_NO_ACCOUNTING = re.compile("accounting storage is disabled")


@dataclass(frozen=True)
class Job:
    """A job, or one task of a job array, as squeue or sacct reports it."""

    job_id: str
    state: str
    partition: str = ""
    # Slurm's word for why it is pending.
    reason: str = ""
    elapsed: str = ""
    time_limit: str = ""
    nodes: str = ""
    exit_code: str = ""

    @property
    def live(self) -> bool:
        """Whether it is still pending or running."""
        return states.meaning_of(self.state).live


@dataclass(frozen=True)
class Use:
    """Resources that a job, or one task of a job array, has used over all of its starts."""

    starts: int
    core_seconds: int
    gpu_seconds: int

    def __add__(self, other: Use) -> Use:
        """Return what both have used together."""
        starts, cores = self.starts + other.starts, self.core_seconds + other.core_seconds
        return Use(starts, cores, self.gpu_seconds + other.gpu_seconds)


def jobs_named(name: str) -> list[str]:
    """Return the ids of the caller's pending, running and ended jobs of this name (for an array, without its tasks)."""
    argv = ["squeue", "--noheader", "--user", getpass.getuser(), "--states=all", "--name", name, "--format=%F"]
    found = client.query(argv).split()
    if not found:
        try:
            found = _sacct(["--name", name, "--starttime=now-30days", "--format=JobIDRaw"]).split()
        except SlurmError:  # Accounting is optional: squeue's answer, none, counts.
            found = []
    return list(dict.fromkeys(job_id.split("_")[0] for job_id in found))


def queue() -> dict[str, Job]:
    """Return the caller's jobs that squeue lists, by id (`123`, `123_4`), in one call."""
    rows = own_rows(("%i", "%T", "%P", "%r", "%M", "%l", "%N"), client.query)
    return {
        row[0]: Job(row[0], row[1], row[2], "" if row[3] == "None" else row[3], row[4], row[5], row[6]) for row in rows
    }


def own_rows(columns: Sequence[str], ask: Callable[[Sequence[str]], str]) -> list[list[str]]:
    """Return squeue's columns for each of the caller's jobs; `ask` runs the command."""
    argv = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--states=all"]
    rows = (line.split(SEPARATOR) for line in ask([*argv, f"--format={SEPARATOR.join(columns)}"]).splitlines())
    return [row for row in rows if len(row) == len(columns)]


def _sacct(argv: Sequence[str]) -> str:
    """Return sacct's output; empty if the site has no accounting.

    Raises:
        truba_runner.slurm.client.SlurmError: accounting does not answer.
    """
    try:
        return client.query(["sacct", "-nPX", *argv])
    except SlurmError as error:
        if _NO_ACCOUNTING.search(error.message) or not (error.transient or error.refused):
            return ""
        raise


def _wanted(job_ids: Iterable[str]) -> list[str]:
    """Return sacct's arguments for these jobs, whenever they ran; empty if there are none."""
    found = sorted({job_id.split("_")[0] for job_id in job_ids})
    return [f"--jobs={','.join(found)}", "--starttime=1970-01-01"] if found else []


def accounting(job_ids: Iterable[str]) -> dict[str, Job]:
    """Return these jobs as Slurm's accounting knows them, by id, in one call; empty if the site has no accounting.

    For a task of a job array, all tasks of the array are included.

    Raises:
        truba_runner.slurm.client.SlurmError: accounting does not answer.
    """
    if not (wanted := _wanted(job_ids)):
        return {}
    text = _sacct([*wanted, "--format=JobID,State,Partition,Elapsed,Timelimit,NodeList,ExitCode"])
    jobs = {}
    rows = (line.split("|") for line in text.splitlines())
    for written, state, partition, elapsed, limit, nodes, exit_code in (row for row in rows if len(row) == 7):
        for job_id in each_task(written):
            # "CANCELLED by 1000" includes the user.
            jobs[job_id] = Job(job_id, state.split()[0], partition, "", elapsed, limit, nodes, exit_code)
    return jobs


def used(job_ids: Iterable[str]) -> dict[str, Use]:
    """Return what these jobs have used in all of their starts, by id, in one call; empty if there is no accounting.

    For a task of a job array, all tasks of the array are included.

    Raises:
        truba_runner.slurm.client.SlurmError: accounting does not answer.
    """
    if not (wanted := _wanted(job_ids)):
        return {}
    text = _sacct(["--duplicates", *wanted, "--format=JobID,ElapsedRaw,AllocCPUS,AllocTRES"])
    found: dict[str, Use] = {}
    for line in text.splitlines():
        job_id, elapsed, cores, resources = line.split("|")
        seconds, gpus = int(elapsed or 0), re.search(r"\bgres/gpu=(\d+)", resources)
        use = Use(1 if seconds else 0, seconds * int(cores or 0), seconds * int(gpus[1]) if gpus else 0)
        found[job_id] = found[job_id] + use if job_id in found else use
    return found


def state(job_id: str) -> str:
    """Return a job's state in the queue; empty if Slurm no longer knows the job.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    return _in_queue(job_id, "%T")


def would_end_for_good(job_id: str) -> bool:
    """Return whether the job would not come back if it exited now: it is running, preempted or not, or its time is up.

    A job that is cancelled or queued again already ends as was requested, so the answer is False.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    state_and_reason = _in_queue(job_id, "%T %r").split()
    return state_and_reason[:1] == ["RUNNING"] or state_and_reason[1:] == ["TimeLimit"]


def _in_queue(job_id: str, columns: str) -> str:
    """Return these columns of squeue for a job; empty if Slurm no longer knows the job."""
    try:
        return client.query(["squeue", "--noheader", "--states=all", "--jobs", job_id, f"--format={columns}"]).strip()
    except SlurmError as error:
        if _UNKNOWN_JOB in error.message:
            return ""
        raise


def each_task(job_id: str) -> list[str]:
    """Expand sacct's row for array tasks that never began, `12_[3,7-9%4]` (at most 4 at once), into their job ids."""
    array, bracket, tasks = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ranges = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.partition("%")[0])
    numbers = (range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in ranges)
    return [f"{array}_{number}" for some in numbers for number in some]
