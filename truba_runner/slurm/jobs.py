"""Job states and what jobs have used: squeue and sacct."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from truba_runner.slurm import states
from truba_runner.slurm.client import SlurmError, query

_SEPARATOR = "\x1f"


# Slurm has forgotten the job; the job to be requeued is back in the queue already.
_UNKNOWN_JOB, BACK_IN_QUEUE = "Invalid job id specified", "Job is pending execution"


# The site has none.
_NO_ACCOUNTING = re.compile("accounting storage is disabled")


@dataclass(frozen=True)
class Job:
    """One job, or one task of a job array, as squeue or sacct tells of it."""

    job_id: str
    state: str
    partition: str = ""
    # Why it is pending, in Slurm's own word.
    reason: str = ""
    elapsed: str = ""
    time_limit: str = ""
    nodes: str = ""
    exit_code: str = ""

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return states.meaning_of(self.state).live


@dataclass(frozen=True)
class Use:
    """What a job, or one task of a job array, has used of the cluster, over all of its starts."""

    starts: int
    core_seconds: int
    gpu_seconds: int

    def __add__(self, other: Use) -> Use:
        """What both have used together."""
        starts, cores = self.starts + other.starts, self.core_seconds + other.core_seconds
        return Use(starts, cores, self.gpu_seconds + other.gpu_seconds)


def jobs_named(name: str) -> list[str]:
    """Ids of the caller's jobs of this name (an array's own id, without its tasks), waiting, running or ended."""
    argv = ["squeue", "--noheader", "--user", getpass.getuser(), "--states=all", "--name", name, "--format=%F"]
    found = query(argv).split()
    if not found:
        try:
            found = _sacct(["--name", name, "--starttime=now-30days", "--format=JobIDRaw"]).split()
        except SlurmError:  # What squeue knew is all there is.
            found = []
    return list(dict.fromkeys(job_id.split("_")[0] for job_id in found))


def queue() -> dict[str, Job]:
    """The caller's jobs that Slurm has in its queue, by id (`123`, `123_4`), in one call."""
    fields = _SEPARATOR.join(("%i", "%T", "%P", "%r", "%M", "%l", "%N"))
    argv = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--states=all", f"--format={fields}"]
    rows = (line.split(_SEPARATOR) for line in query(argv).splitlines())
    return {
        row[0]: Job(row[0], row[1], row[2], "" if row[3] == "None" else row[3], row[4], row[5], row[6])
        for row in rows
        if len(row) == 7
    }


def _sacct(argv: Sequence[str]) -> str:
    """What accounting tells of jobs; nothing where the site has none.

    Raises:
        SlurmError: it does not answer.
    """
    try:
        return query(["sacct", "-nPX", *argv])
    except SlurmError as error:
        if _NO_ACCOUNTING.search(error.message) or not (error.transient or error.refused):
            return ""
        raise


def _wanted(job_ids: Iterable[str]) -> list[str]:
    """For sacct: these jobs, whenever they were."""
    found = sorted({job_id.split("_")[0] for job_id in job_ids})
    return [f"--jobs={','.join(found)}", "--starttime=1970-01-01"] if found else []


def accounting(job_ids: Iterable[str]) -> dict[str, Job]:
    """What Slurm's accounting knows of these jobs, by id, in one call; nothing where the site has none.

    Of a job array that one of them is of, all tasks.

    Raises:
        SlurmError: it does not answer.
    """
    if not (wanted := _wanted(job_ids)):
        return {}
    text = _sacct([*wanted, "--format=JobID,State,Partition,Elapsed,Timelimit,NodeList,ExitCode"])
    jobs = {}
    rows = (line.split("|") for line in text.splitlines())
    for written, state, partition, elapsed, limit, nodes, exit_code in (row for row in rows if len(row) == 7):
        for job_id in each_task(written):
            # "CANCELLED by 1000" names who did it.
            jobs[job_id] = Job(job_id, state.split()[0], partition, "", elapsed, limit, nodes, exit_code)
    return jobs


def used(job_ids: Iterable[str]) -> dict[str, Use]:
    """What these jobs have used, by id, in one call; nothing where the site has no accounting. Requeues count.

    Of a job array that one of them is of, all tasks.

    Raises:
        SlurmError: accounting does not answer.
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
    """One job's state in the queue; empty where Slurm does not know it any more.

    Raises:
        SlurmError: Slurm does not answer.
    """
    return _in_queue(job_id, "%T")


def would_end_for_good(job_id: str) -> bool:
    """Whether a job that ends by itself now is over: it runs, preempted or not, or its time is up.

    One that is cancelled, or that is back in the queue, ends as it was told to.

    Raises:
        SlurmError: Slurm does not answer.
    """
    told = _in_queue(job_id, "%T %r").split()
    return told[:1] == ["RUNNING"] or told[1:] == ["TimeLimit"]


def _in_queue(job_id: str, columns: str) -> str:
    """What squeue tells of one job; empty where Slurm does not know it any more."""
    try:
        return query(["squeue", "--noheader", "--states=all", "--jobs", job_id, f"--format={columns}"]).strip()
    except SlurmError as error:
        if _UNKNOWN_JOB in error.message:
            return ""
        raise


def each_task(job_id: str) -> list[str]:
    """Of an array, those tasks that never began are one row of sacct's: `12_[3,7-9%4]`, of which 4 at once."""
    array, bracket, tasks = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ranges = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.partition("%")[0])
    numbers = (range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in ranges)
    return [f"{array}_{number}" for some in numbers for number in some]
