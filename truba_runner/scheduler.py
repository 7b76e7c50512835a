"""Slurm's commands: the only place that runs sbatch, squeue, sacct and scancel. Arguments in, parsed rows out."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TIMEOUT_SECONDS = 60
# Between attempts; TRUBA's own advice on a socket timeout is to wait and try again.
BACKOFF_SECONDS = (1, 2, 4, 8, 16)
_TRANSIENT = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Zero Bytes were transmitted",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Resource temporarily unavailable",
)
# The command found no Slurm to ask.
_UNREACHABLE = (
    "resolve_ctls_from_dns_srv",
    "Could not establish a configuration source",
    "Unable to process configuration",
)
_SEPARATOR = "\x1f"
# What srun ends with where not the program but srun itself has failed (SLURM_EXIT_ERROR); no program of ours does.
SRUN_FAILED = 121


class SlurmError(Exception):
    """A Slurm command failed.

    `transient`: the same command may work a moment later. `refused`: Slurm has heard the request and will not have it.
    """

    def __init__(self, command: str, message: str, transient: bool, refused: bool = False) -> None:
        """`message` is what the command printed on its standard error."""
        super().__init__(f"{command}: {message}")
        self.message = message
        self.transient = transient
        self.refused = refused


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
        return self.state in {
            "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STAGE_OUT",
            "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STOPPED", "SPECIAL_EXIT",
        }  # fmt: skip


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def run(argv: Sequence[str], *, text: str | None = None, inherit: Sequence[int] = ()) -> str:
    """Runs one command once; `text` is its standard input, `inherit` are descriptors that it keeps open.

    Raises:
        SlurmError: it is not installed, ended with an error, or did not answer in time.
    """
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            pass_fds=inherit,
            check=False,
            # Else the list of an array's tasks is cut short.
            env={**os.environ, "SLURM_BITSTR_LEN": "0"},
        )
    except FileNotFoundError as error:
        raise SlurmError(argv[0], "there is no such command on the PATH; is this a login node?", False) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(argv[0], f"no answer within {TIMEOUT_SECONDS} s", transient=True) from error
    if done.returncode:
        message = done.stderr.strip() or f"exit status {done.returncode}"
        unreachable = any(sign in message for sign in _UNREACHABLE)
        raise SlurmError(argv[0], message, any(sign in message for sign in _TRANSIENT), refused=not unreachable)
    return done.stdout


def query(argv: Sequence[str]) -> str:
    """Runs a command that changes nothing, again after a pause where Slurm did not answer.

    Raises:
        SlurmError: as `run`, after the last attempt.
    """
    for pause_seconds in BACKOFF_SECONDS:
        try:
            return run(argv)
        except SlurmError as error:
            if not error.transient:
                raise
            time.sleep(pause_seconds)
    return run(argv)


def sbatch(script: str, *, inherit: Sequence[int] = ()) -> str:
    """Submits a script once and returns the job id.

    Raises:
        SlurmError: refused, or not answered: then the job may or may not exist.
    """
    return run(["sbatch", "--parsable"], text=script, inherit=inherit).strip().split(";")[0]


def would_accept(script: str) -> str:
    """What `sbatch --test-only` says of a script that it would take; nothing is submitted.

    Raises:
        SlurmError: it would be refused.
    """
    return run(["sbatch", "--test-only"], text=script)


def jobs_named(name: str) -> list[str]:
    """Ids of the caller's jobs of this name (an array's own id, without its tasks), waiting, running or ended."""
    argv = ["squeue", "--noheader", "--user", getpass.getuser(), "--states=all", "--name", name, "--format=%F"]
    found = query(argv).split()
    if not found:
        try:
            found = query(["sacct", "-nPX", "--name", name, "--starttime=now-30days", "--format=JobIDRaw"]).split()
        except SlurmError:  # A site without accounting: what squeue knew is all there is.
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


def accounting(job_ids: Iterable[str]) -> dict[str, Job]:
    """What Slurm's accounting knows of these jobs, by id, in one call; nothing where the site has none.

    Of a job array that one of them is of, all tasks.
    """
    wanted = sorted({job_id.split("_")[0] for job_id in job_ids})
    if not wanted:
        return {}
    fields = "JobID,State,Partition,Elapsed,Timelimit,NodeList,ExitCode"
    try:
        text = query(["sacct", "-nPX", f"--jobs={','.join(wanted)}", f"--format={fields}", "--starttime=1970-01-01"])
    except SlurmError:
        return {}
    jobs = {}
    for line in text.splitlines():
        written, state, partition, elapsed, limit, nodes, exit_code = line.split("|")
        for job_id in _each_task(written):
            # "CANCELLED by 1000" names who did it.
            jobs[job_id] = Job(job_id, state.split()[0], partition, "", elapsed, limit, nodes, exit_code)
    return jobs


def _each_task(job_id: str) -> list[str]:
    """Of an array, those tasks that never began are one row of sacct's: `12_[3,7-9%4]`, of which 4 at once."""
    array, bracket, tasks = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ranges = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.partition("%")[0])
    numbers = (range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in ranges)
    return [f"{array}_{number}" for some in numbers for number in some]


def max_array_size() -> int:
    """How many tasks a job array may have; Slurm's own default where it does not tell."""
    try:
        told = query(["scontrol", "show", "config"])
    except SlurmError:
        told = ""
    found = re.search(r"^MaxArraySize\s*= (\d+)", told, re.MULTILINE)
    return int(found[1]) if found else 1001


def core_limit(account: str) -> int:
    """Cores that the caller may use at once on an account, as the controller has it; 0: none is told of."""
    # sacctmgr prints it better, and takes fifteen times as long.
    user = getpass.getuser()
    argv = ["scontrol", "--oneliner", "show", "assoc_mgr", "flags=assoc", f"accounts={account}", f"users={user}"]
    try:
        told = query(argv)
    except SlurmError:  # A site may not let its users see this.
        return 0
    pattern = rf"Account={re.escape(account)} UserName=(?:{re.escape(user)}\(\d+\))? .* GrpTRES=cpu=(\d+)\("
    limits = (re.search(pattern, line) for line in told.splitlines())
    return min((int(found[1]) for found in limits if found), default=0)


def release(job_ids: Sequence[str]) -> None:
    """Lets jobs start that were submitted to be held.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "release", ",".join(job_ids)])


def state(job_id: str) -> str:
    """One job's state in the queue; empty where Slurm does not know it any more.

    Raises:
        SlurmError: Slurm does not answer.
    """
    return query(["squeue", "--noheader", "--states=all", "--jobs", job_id, "--format=%T"]).strip()


def forbid_requeue(job_id: str) -> None:
    """Lets a job end for good, whatever it or Slurm would do at its end.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "update", f"jobid={job_id}", "requeue=0"])


def requeue(job_id: str) -> None:
    """Puts a running job back into the queue; its processes are told to end.

    Raises:
        SlurmError: Slurm does not answer, or the job may not be requeued.
    """
    query(["scontrol", "requeue", job_id])


def cancel(job_ids: Sequence[str]) -> None:
    """Cancels jobs; one that has ended already is no error.

    Raises:
        SlurmError: Slurm refused.
    """
    query(["scancel", *job_ids])
