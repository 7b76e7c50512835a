"""What state a run is in, told from Slurm where it knows the run's job, else from the run directory; never guessed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.language import _, marked
from truba_runner.runs import damage
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.client import SRUN_FAILED
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.states import meaning_of

# How often, and how far apart, a process without a command line is looked at: its start takes a millisecond.
_MOST_LOOKS, _LOOK_SECONDS = 50, 0.002
# Slurm's words for a job that waits for another, and that waits in vain.
_WAITS, _IN_VAIN = "Dependency", "DependencyNeverSatisfied"
_SILENT = marked("it ended without a word; truba logs shows the last of it, and the same command goes on")
_NOT_BEGUN = marked("nothing was done about it so far; the same command goes on with it")
_INTERRUPTED = marked("interrupted; the same command goes on")


@dataclass(frozen=True)
class RunState:
    """A run as its owner wants to see it. `state` is Slurm's word where Slurm has one."""

    state: str
    live: bool
    job: Job | None
    # One line: why it waits, or why it failed.
    why: str = ""
    # Its result is there, and its job still puts things in order, or has no end.
    ending: bool = False


def last_job_id(run: RunDir) -> str:
    """The id of the job that the run was last given; empty where there was none."""
    events = run.submissions()
    duplicates = {event["job_id"] for event in events if event["event"] == "duplicate"}
    for event in reversed(events):
        if event["event"] in {"submitted", "started", "local"} and event["job_id"] not in duplicates:
            return str(event["job_id"])
    return ""


def slurm_jobs(run: RunDir) -> set[str]:
    """Every job that the run ever had on this machine's Slurm: of a copy none."""
    if run.pulled():
        return set()
    told = (str(event["job_id"]) for event in damage.submissions(run) if event.get("job_id"))
    return {job_id for job_id in told if is_slurms(job_id)}


def is_slurms(job_id: str) -> bool:
    """Whether it names a job of Slurm's, and not a process here."""
    return job_id[:1].isdigit()


def local_process(run: RunDir) -> int:
    """The process that trains a live local run."""
    progress = progress_of(run)
    return int(progress["pid"] if progress else run.submissions()[-1]["pid"])


def progress_of(run: RunDir) -> dict[str, Any]:
    """How far the run's latest job has come; empty where that job has not begun, whatever an earlier one left."""
    progress = run.progress()
    return progress if progress.get("job_id") == last_job_id(run) else {}


def state_of(run: RunDir, jobs: Mapping[str, Job] | None) -> RunState:
    """The state of a run, given what Slurm knows of its owner's jobs; `jobs` is None where Slurm does not answer."""
    if why := damage.of_run(run):
        return _damaged(run, jobs, why)
    progress = progress_of(run)
    if pulled := run.pulled():
        return _state_when_pulled(run, progress, pulled)
    job = _job_of(last_job_id(run), jobs or {})
    finder = None if progress else run.finder()
    if run.result():
        return RunState("COMPLETED", live=False, job=job, ending=job is not None and job.live and _is_alone(run))
    if job is not None and job.live and not (finder and job.reason == _IN_VAIN):
        waits = RunState(job.state, live=True, job=job, why=_waits_for(run, progress, job))
        return _among_others(run, progress, job) or waits
    if finder and (why := has_no_rate(finder, jobs)):
        # Slurm takes such a job out of the queue when it next looks.
        return RunState("CANCELLED", live=False, job=job, why=why)
    if job is not None:
        # A job that ended well without a result has not trained: the run is not complete.
        state = "FAILED" if job.state == "COMPLETED" else job.state
        why = (
            _why(progress)
            or dropped(run.submissions())
            or (_along_with_canary(run) if state == "CANCELLED" and not progress else "")
            or meaning_of(state).said()
            or (_(_INTERRUPTED) if progress.get("state") == "interrupted" else "")
        )
        return RunState(state, live=False, job=job, why=why or _exit(job) or _(_SILENT))
    return _state_on_record(run, progress, slurm_answers=jobs is not None)


def _damaged(run: RunDir, jobs: Mapping[str, Job] | None, why: str) -> RunState:
    """Of a run whose records tell nothing sure: whether Slurm has a job of it, as far as they name one."""
    try:
        job = None if run.pulled() else _job_of(last_job_id(run), jobs or {})
    except OSError:
        job = None
    return RunState(damage.DAMAGED, live=job is not None and job.live, job=job, why=why)


def _state_when_pulled(run: RunDir, progress: Mapping[str, Any], pulled: Mapping[str, Any]) -> RunState:
    """What the records of a copy tell: the job is another machine's, and may have gone on since."""
    if run.result():
        return RunState("COMPLETED", live=False, job=None)
    ended = {"failed": ("FAILED", _why(progress)), "interrupted": ("INTERRUPTED", _(_INTERRUPTED))}
    state, why = ended.get(str(progress.get("state")), ("RUNNING" if progress else "UNKNOWN", ""))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(pulled.get("time", 0))))
    place = pulled.get("from", "?")
    as_of = _("as it was at {place} on {when}; truba pull looks again", place=place, when=when)
    return RunState(state, live=False, job=None, why=f"{why}; {as_of}" if why else as_of)


def _job_of(job_id: str, jobs: Mapping[str, Job]) -> Job | None:
    """Tasks of an array that were cancelled before they began are one row of squeue's, under the array's own id."""
    whole = jobs.get(job_id.partition("_")[0])
    return jobs.get(job_id) or (whole if whole is not None and not whole.live else None)


def _among_others(run: RunDir, progress: Mapping[str, Any], job: Job) -> RunState | None:
    """The state of a run that has failed while its job goes on: it shares the job with others. None: it has not."""
    if _is_alone(run):
        return None
    return RunState("FAILED", live=False, job=job, why=_why(progress)) if progress.get("state") == "failed" else None


def _is_alone(run: RunDir) -> bool:
    """Whether its job is no other run's."""
    return bool(last_intent(run).get("places", 1) == 1)


def _waits_for(run: RunDir, progress: Mapping[str, Any], job: Job) -> str:
    """What a job in the queue waits for, or why a run has failed whose job Slurm is still clearing away."""
    if progress.get("state") == "failed":
        return _why(progress)
    intent = last_intent(run)
    if job.reason == _WAITS and intent.get("canary"):
        return _("held until {canary} has lived through its first epoch", canary=intent["canary"])
    if job.reason == _WAITS and intent.get("finder"):
        return _("waits for its learning-rate finder {finder}", finder=intent["finder"])
    means = meaning_of(job.state)
    return means.said() if means.held or not job.reason else job.reason


def has_no_rate(finder: RunDir, jobs: Mapping[str, Job] | None) -> str:
    """Why a run cannot have its learning rate from this finder; empty where it may, or Slurm does not answer."""
    if jobs is None or finder.result() or (state := state_of(finder, jobs)).live:
        return ""
    told = f"{state.state}: {state.why}" if state.why else state.state
    return _(
        "its learning-rate finder {finder} is {state}; the same command starts both again", finder=finder.id, state=told
    )


def dropped(told: Sequence[Mapping[str, Any]]) -> str:
    """Why a run with these events was taken out of the queue before it started; empty where it was not."""
    for event in reversed(told):
        # The command that has submitted it may put the job's number on record after the canary has failed.
        if event["event"] in {"dropped", "intent", "started", "local"}:
            return str(event["why"]) if event["event"] == "dropped" else ""
    return ""


def _along_with_canary(run: RunDir) -> str:
    """What Slurm's word means for a run that waited for another, which has not lived."""
    canary = last_intent(run).get("canary")
    if not canary or RunDir(run.path.parent / canary).has_lived():
        return ""
    return _(
        "cancelled along with the canary {canary}, which ended before its first epoch did; the same command goes on",
        canary=canary,
    )


def last_intent(run: RunDir) -> dict[str, Any]:
    """The record of its last submission; empty where there was none."""
    return next((event for event in reversed(run.submissions()) if event["event"] == "intent"), {})


def _state_on_record(run: RunDir, progress: Mapping[str, Any], slurm_answers: bool) -> RunState:
    """Where Slurm has nothing to say: what the run directory itself tells."""
    if not run.submissions():
        return RunState("NOT_BEGUN", live=False, job=None, why=_(_NOT_BEGUN))
    recorded = progress.get("state")
    if recorded == "failed":
        return RunState("FAILED", live=False, job=None, why=_why(progress))
    if recorded == "interrupted":
        return RunState("INTERRUPTED", live=False, job=None, why=_(_INTERRUPTED))
    if killed := next((event for event in run.submissions() if _is_kill(event, last_job_id(run))), None):
        why = _("killed by {signal}; the same command goes on", signal=killed["signal"])
        return RunState("KILLED", live=False, job=None, why=why)
    if recorded == "running":
        if _process_lives(run, progress):
            return RunState("RUNNING", live=True, job=None)
        if not slurm_answers:
            return RunState("UNKNOWN", live=False, job=None, why=_("it was running when Slurm last answered"))
        return RunState("LOST", live=False, job=None, why=_(_SILENT))
    events = run.submissions()
    if events and events[-1]["event"] == "local" and _process_lives(run, events[-1]):
        return RunState("RUNNING", live=True, job=None)
    if events and events[-1]["event"] == "refused":
        return RunState("REFUSED", live=False, job=None, why=str(events[-1].get("message", "")))
    why = _("Slurm does not know its job, and it never started") if slurm_answers else _("Slurm does not answer")
    return RunState("UNKNOWN", live=False, job=None, why=why)


def _is_kill(event: Mapping[str, Any], job_id: str) -> bool:
    return (event["event"], event.get("job_id")) == ("killed", job_id)


def _process_lives(run: RunDir, record: Mapping[str, Any]) -> bool:
    """Whether a local run's process is still there; what runs on another host can't be seen from here."""
    if record.get("host") != socket.gethostname():
        return False
    # Else the number is another process's by now.
    return os.fsencode(run.id) in _command_of(Path("/proc") / str(record.get("pid")))


def _command_of(process: Path) -> bytes:
    """A process' command line; empty where it has ended, or is one of the kernel's."""
    try:
        for _attempt in range(_MOST_LOOKS):
            if command := (process / "cmdline").read_bytes():
                return command
            # In the moment of its start it has none either; one that has ended and is not waited for never has.
            if (process / "stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}:
                break
            time.sleep(_LOOK_SECONDS)
    except OSError:
        pass
    return b""


def _why(progress: Mapping[str, Any]) -> str:
    error = progress.get("error")
    if not error:
        return ""
    message = str(error["message"]).splitlines()
    # Ours is a sentence already.
    kind = "" if error["type"] == "Failed" else f"{error['type']}: "
    told = f"{kind}{message[0] if message else ''}"
    if "file" not in error:
        return told
    return _("{error} at {file}:{line}: {code}", error=told, **{key: error[key] for key in ("file", "line", "code")})


def _exit(job: Job) -> str:
    if job.exit_code.startswith(f"{SRUN_FAILED}:"):
        return _("Slurm could not start it on its nodes; truba logs shows why, and the same command goes on")
    if job.exit_code in {"", "0:0"} or job.state != "FAILED":
        return ""
    return _("exit code {code}", code=job.exit_code)
