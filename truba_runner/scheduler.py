"""Slurm's commands: the only place that runs sbatch, squeue, sacct and scancel. Arguments in, parsed rows out."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

from truba_runner import relay
from truba_runner.language import _
from truba_runner.slurm_answers import Job as Job
from truba_runner.slurm_answers import SlurmError as SlurmError
from truba_runner.slurm_answers import Use as Use
from truba_runner.slurm_text import each_task, gpus_in

TIMEOUT_SECONDS = 60
# Accounting is asked once, and not for long: where it is down, what commands need is on record.
ACCOUNTING_SECONDS = 5.0
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
# Slurm has forgotten the job; the job to be requeued is back in the queue already.
_UNKNOWN_JOB, _BACK_IN_QUEUE = "Invalid job id specified", "Job is pending execution"
# The site has none.
_NO_ACCOUNTING = re.compile("accounting storage is disabled")
_SEPARATOR = "\x1f"
# Of each column that sinfo prints; it has no delimiter for what --Format asks for.
_WIDTH = 128
# What srun ends with where not the program but srun itself has failed (SLURM_EXIT_ERROR); no program of ours does.
SRUN_FAILED = 121


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None or relay.folder() is not None


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    inherit: Sequence[int] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Runs one command once, and returns what it printed; `text` is its standard input.

    `inherit` are descriptors that it keeps open.

    Raises:
        SlurmError: it is not installed, ended with an error, or did not answer in time.
    """
    return _done(argv, text=text, inherit=inherit, timeout_seconds=timeout_seconds).stdout


def _done(
    argv: Sequence[str],
    *,
    text: str | None = None,
    inherit: Sequence[int] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    if any("\0" in word for word in argv):
        raise SlurmError(argv[0], _("a name holds a NUL character, which no command can be given"), transient=False)
    try:
        if outside := relay.folder():
            done = relay.call(outside, argv, text, timeout_seconds)
        else:
            done = subprocess.run(
                argv,
                input=text,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                pass_fds=inherit,
                check=False,
                # Else the list of an array's tasks is cut short.
                env={**os.environ, "SLURM_BITSTR_LEN": "0"},
            )
    except FileNotFoundError as error:
        told = _("there is no such command on the PATH; is this a login node?")
        raise SlurmError(argv[0], told, transient=False) from error
    except subprocess.TimeoutExpired as error:
        told = _("no answer within {seconds:g} s", seconds=timeout_seconds)
        raise SlurmError(argv[0], told, transient=True) from error
    if done.returncode:
        # scontrol ping says on its standard output that nobody has answered.
        message = done.stderr.strip() or done.stdout.strip() or _("exit status {status}", status=done.returncode)
        unreachable = any(sign in message for sign in _UNREACHABLE)
        raise SlurmError(argv[0], message, any(sign in message for sign in _TRANSIENT), refused=not unreachable)
    return done


def query(argv: Sequence[str]) -> str:
    """Runs a command that changes nothing, again after a pause where Slurm did not answer.

    Raises:
        SlurmError: as `run`, after the last attempt.
    """
    if argv[0] == "sacct":
        return run(argv, timeout_seconds=ACCOUNTING_SECONDS)
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


def estimated_start(script: str) -> float:
    """When Slurm expects that a job of this script would start (`sbatch --test-only`), in seconds since 1970.

    Nothing is submitted.

    Raises:
        SlurmError: it would be refused, or Slurm does not answer.
    """
    told = _done(["sbatch", "--test-only"], text=script).stderr
    found = re.search(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", told)
    if not found:
        raise SlurmError("sbatch --test-only", _("no start time in: {said}", said=told.strip()), transient=False)
    return datetime.fromisoformat(found[1]).timestamp()


def free_gpus() -> dict[tuple[str, str], int]:
    """GPUs that no job has, on nodes that take jobs, by partition and feature of its nodes; "" stands for all nodes."""
    columns = ("Partition", "Gres", "GresUsed", "StateCompact", "Features")
    text = query(["sinfo", "--noheader", "--Node", f"--Format={','.join(f'{name}:{_WIDTH}' for name in columns)}"])
    free: dict[tuple[str, str], int] = {}
    for line in text.splitlines():
        starts = range(0, _WIDTH * len(columns), _WIDTH)
        partition, gres, used, state, features = (line[start : start + _WIDTH].strip() for start in starts)
        # ~: switched off until it is wanted; -: planned for a job that waits. An asterisk: it does not answer.
        takes_jobs = state.rstrip("~-") in {"idle", "mix", "alloc", "plnd"}
        # Of the default partition's name the asterisk is a mark.
        partition = partition.rstrip("*")
        for feature in ("", *features.split(",")):
            here = free.get((partition, feature), 0)
            free[partition, feature] = here + (gpus_in(gres) - gpus_in(used) if takes_jobs else 0)
    return free


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


def release(job_id: str) -> None:
    """Lets a job start whatever it was submitted to wait for.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "update", f"jobid={job_id}", "dependency="])


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


def forbid_requeue(job_id: str) -> None:
    """Lets a job end for good, whatever it or Slurm would do at its end.

    Raises:
        SlurmError: Slurm does not answer, or may not.
    """
    query(["scontrol", "update", f"jobid={job_id}", "requeue=0"])


def requeue(job_id: str) -> None:
    """Puts a running job back into the queue; its processes are told to end. One that is there already is no error.

    Raises:
        SlurmError: Slurm does not answer, or the job may not be requeued.
    """
    try:
        query(["scontrol", "requeue", job_id])
    except SlurmError as error:
        # Slurm has done it at a first attempt whose answer was lost, or for another who asked at the same time.
        if _BACK_IN_QUEUE not in error.message:
            raise


def cancel(job_ids: Sequence[str]) -> None:
    """Cancels jobs; one that has ended already is no error.

    Raises:
        SlurmError: Slurm refused.
    """
    query(["scancel", *job_ids])
