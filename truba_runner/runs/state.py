"""Determine a run's state: from Slurm if it knows the run's job, else from the run directory; never guessed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from truba_runner.language import _, marked
from truba_runner.runs import damage
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import ProgressRecord, Stage
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import task_log
from truba_runner.slurm.client import SRUN_FAILED
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.states import NOT_ENTERED, REASON, meaning_of
from truba_runner.storage import safe_files

# A job that could not enter its environment ends right after printing the reason.
_TAIL_BYTES = 4096
# Reads of the command line of a starting process, which is empty for about a millisecond, and the pause between reads.
_MOST_LOOKS, _LOOK_SECONDS = 50, 0.002
# Slurm's reasons for a job that waits for another job, and for one whose dependency can never be satisfied.
_WAITS, _IN_VAIN = "Dependency", "DependencyNeverSatisfied"
_SILENT = marked("it ended without an error message; truba logs shows its last lines, and the same command resumes it")
_NOT_BEGUN = marked("not started yet; the same command starts it")
_INTERRUPTED = marked("interrupted; the same command resumes it")


@dataclass(frozen=True)
class RunState:
    """State of a run, as shown to its owner. `state` is Slurm's job state if Slurm has one."""

    state: str
    live: bool
    job: Job | None
    # Why the run waits, or why it failed, in one line.
    why: str = ""
    # The run has its result, but its job still runs: it is cleaning up, or hangs.
    ending: bool = False
    # A login node of another Slurm cluster that may have the run's job; empty if there is none.
    elsewhere: str = ""


def last_job_id(run: RunDir) -> str:
    """Return the id of the run's last job; empty if there was none."""
    return run.record().job_id


def slurm_jobs(run: RunDir) -> set[str]:
    """Return the ids of all jobs that the run ever had in this machine's Slurm; none for a pulled copy."""
    if run.pulled():
        return set()
    found, there = set(), False
    for event in damage.submissions(run):
        there = bool(_login_node(event)) if event.kind == Kind.INTENT else there
        found |= {event.job_id} if is_slurms(event.job_id) and not there else set()
    return found


def is_slurms(job_id: str) -> bool:
    """Whether an id is a Slurm job's, and not a local process'."""
    return job_id[:1].isdigit()


def local_process(run: RunDir) -> int:
    """Return the process id of a live local run."""
    record = run.record()
    return record.progress.pid or record.events[-1].pid


def progress_of(run: RunDir) -> ProgressRecord:
    """Return the progress of the run's last job; without any value if it has not begun, even if an earlier one had."""
    return run.record().progress


def state_of(record: RunRecord, jobs: Mapping[str, Job] | None) -> RunState:
    """Return a run's state, given Slurm's list of the owner's jobs by id; `jobs` is None if Slurm does not answer."""
    if why := damage.of_record(record):
        return _damaged(record, jobs, why)
    progress = record.progress
    if record.pulled:
        return _state_when_pulled(record)
    if there := elsewhere(record):
        why = _("its job belongs to another Slurm cluster; ask on {host}", host=there)
        return RunState("UNKNOWN", live=False, job=None, why=why, elsewhere=there)
    job = _job_of(record.job_id, jobs or {})
    finder = None if progress or not record.finder else record.of(record.finder)
    if record.result:
        ending = job is not None and job.live and record.intent.places == 1
        return RunState("COMPLETED", live=False, job=job, ending=ending)
    if job is not None and job.live and not (finder and job.reason == _IN_VAIN):
        waits = RunState(job.state, live=True, job=job, why=_waits_for(record, job))
        return _among_others(record, job) or waits
    if finder and (why := has_no_rate(finder, jobs)):
        # Slurm removes such a job from the queue at its next scheduling pass.
        return RunState("CANCELLED", live=False, job=job, why=why)
    if job is None:
        return _state_on_record(record, slurm_answers=jobs is not None)
    if _left_to_resume(record, job):
        return RunState("INTERRUPTED", live=False, job=job, why=_(_INTERRUPTED))
    # A job that completed without writing a result has not finished the training.
    state = "FAILED" if job.state == "COMPLETED" else job.state
    why = (
        _why(progress)
        or dropped(record.events)
        or (_along_with_canary(record) if state == "CANCELLED" and not progress else "")
        or meaning_of(state).said()
        or (_(_INTERRUPTED) if progress.state == Stage.INTERRUPTED else "")
    )
    why = why or why_not_entered(record, job.exit_code)
    return RunState(state, live=False, job=job, why=why or _exit(job) or _(_SILENT))


def _left_to_resume(record: RunRecord, job: Job) -> bool:
    """Return whether the run saved its state and ended because the site does not requeue jobs.

    Slurm then reports the job as failed. At other sites, a later start may have failed before it recorded anything.
    """
    no_requeue = record.intent.request.get("requeue") is False
    return no_requeue and job.state == "FAILED" and record.progress.state == Stage.INTERRUPTED


def elsewhere(record: RunRecord) -> str:
    """Return the login node to ask for a run's job if another Slurm cluster may have it; else empty."""
    intent = record.intent
    over = record.result or record.progress.state == Stage.FAILED
    if over or not (login_node := _login_node(intent)):
        return ""
    never_queued = any(one.token == intent.token and one.kind in {Kind.REFUSED, Kind.LOST} for one in record.events)
    return "" if never_queued else login_node


def _login_node(intent: Event) -> str:
    """Return a login node of the Slurm cluster that a submission went to, if not this machine's; else empty."""
    own, others = (str(intent.request.get(key) or "").split(",") for key in ("login_nodes", "other_login_nodes"))
    return own[0] if socket.gethostname().partition(".")[0] in others else ""


def _damaged(record: RunRecord, jobs: Mapping[str, Job] | None, why: str) -> RunState:
    """Return the state of a run with damaged records, live if Slurm has the job that they name, if they name one."""
    try:
        job = None if record.pulled else _job_of(record.job_id, jobs or {})
    except OSError:
        job = None
    return RunState(damage.DAMAGED, live=job is not None and job.live, job=job, why=why)


def _state_when_pulled(record: RunRecord) -> RunState:
    """Return a pulled copy's state from its records alone: its job is another machine's, and may have progressed."""
    if record.result:
        return RunState("COMPLETED", live=False, job=None)
    progress, pulled = record.progress, record.pulled
    ended = {Stage.FAILED: ("FAILED", _why(progress)), Stage.INTERRUPTED: ("INTERRUPTED", _(_INTERRUPTED))}
    state, why = ended.get(progress.state, ("RUNNING" if progress else "UNKNOWN", ""))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(pulled.get("time", 0))))
    place = pulled.get("from", "?")
    as_of = _("as of {when} on {place}; truba pull updates it", place=place, when=when)
    return RunState(state, live=False, job=None, why=f"{why}; {as_of}" if why else as_of)


def _job_of(job_id: str, jobs: Mapping[str, Job]) -> Job | None:
    """Return a run's job; array tasks cancelled before they began are one row in squeue, under the array's id."""
    whole = jobs.get(job_id.partition("_")[0])
    return jobs.get(job_id) or (whole if whole is not None and not whole.live else None)


def _among_others(record: RunRecord, job: Job) -> RunState | None:
    """Return the state of a packed run that has failed while its job still runs; None if not packed or not failed."""
    if record.intent.places == 1 or record.progress.state != Stage.FAILED:
        return None
    return RunState("FAILED", live=False, job=job, why=_why(record.progress))


def _waits_for(record: RunRecord, job: Job) -> str:
    """Return what a queued job waits for, or why the run failed if Slurm has not ended its job yet."""
    if record.progress.state == Stage.FAILED:
        return _why(record.progress)
    intent = record.intent
    if job.reason == _WAITS and intent.canary:
        return _("held until {canary} finishes its first epoch", canary=intent.canary)
    if job.reason == _WAITS and intent.finder:
        return _("waits for its learning-rate finder {finder}", finder=intent.finder)
    means = meaning_of(job.state)
    reason = means.said() if means.held or not job.reason else job.reason
    return "; ".join(filter(None, [reason, _node_left(record)]))


def _node_left(record: RunRecord) -> str:
    """Say which bad node the run's last start has left; empty if it has started again since."""
    begins = {Kind.INTENT, Kind.LOOKED, Kind.STARTED, Kind.BAD_NODE}
    last = next((event for event in reversed(record.events) if event.kind in begins), Event())
    if last.kind != Kind.BAD_NODE:
        return ""
    return _("left {node}, a bad node ({check}: {message})", node=last.node, check=last.check, message=last.message)


def has_no_rate(finder: RunRecord, jobs: Mapping[str, Job] | None) -> str:
    """Return why this finder will never give a learning rate; empty if it may, or if Slurm does not answer."""
    if jobs is None or finder.result or (state := state_of(finder, jobs)).live:
        return ""
    words = f"{state.state}: {state.why}" if state.why else state.state
    return _(
        "its learning-rate finder {finder} is {state}; the same command starts both again",
        finder=finder.id,
        state=words,
    )


def dropped(events: Sequence[Event]) -> str:
    """Return why a run with these events was removed from the queue before its start; empty if it was not."""
    for event in reversed(events):
        # `submitted` is ignored: the submitting command may record it only after the canary has failed.
        if event.kind in {Kind.DROPPED, Kind.INTENT, Kind.STARTED, Kind.LOCAL}:
            return event.why
    return ""


def _along_with_canary(record: RunRecord) -> str:
    """Return the reason for CANCELLED if the run's canary ended before its first epoch did; else empty."""
    canary = record.intent.canary
    if not canary or record.of(canary).has_finished_an_epoch:
        return ""
    return _(
        "cancelled because the canary {canary} ended before finishing its first epoch; the same command "
        "submits it again",
        canary=canary,
    )


def _state_on_record(record: RunRecord, slurm_answers: bool) -> RunState:
    """Return the state according to the run directory, if Slurm does not know the job."""
    progress, events = record.progress, record.events
    if not events:
        return RunState("NOT_BEGUN", live=False, job=None, why=_(_NOT_BEGUN))
    if progress.state == Stage.FAILED:
        return RunState("FAILED", live=False, job=None, why=_why(progress))
    if progress.state == Stage.INTERRUPTED:
        return RunState("INTERRUPTED", live=False, job=None, why=_(_INTERRUPTED))
    if killed := next((event for event in events if _is_kill(event, record.job_id)), None):
        why = _("killed by {signal}; the same command resumes it", signal=killed.signal)
        return RunState("KILLED", live=False, job=None, why=why)
    if progress.state == Stage.RUNNING:
        if _process_lives(record.id, progress.host, progress.pid):
            return RunState("RUNNING", live=True, job=None)
        if not slurm_answers:
            return RunState("UNKNOWN", live=False, job=None, why=_("it was running when Slurm last answered"))
        return RunState("LOST", live=False, job=None, why=_(_SILENT))
    if record.job_id and is_slurms(record.job_id) and (why := why_not_entered(record, "")):
        return RunState("FAILED", live=False, job=None, why=why)
    last = events[-1]
    if last.kind == Kind.LOCAL and _process_lives(record.id, last.host, last.pid):
        return RunState("RUNNING", live=True, job=None)
    if last.kind == Kind.REFUSED:
        return RunState("REFUSED", live=False, job=None, why=last.message)
    why = _("Slurm does not know its job, and it never started") if slurm_answers else _("Slurm does not answer")
    return RunState("UNKNOWN", live=False, job=None, why=why)


def _is_kill(event: Event, job_id: str) -> bool:
    return (event.kind, event.job_id) == (Kind.KILLED, job_id)


def _process_lives(run_id: str, host: str | None, pid: int | None) -> bool:
    """Whether a local run's process is alive on this host; False for a process on another host."""
    if host != socket.gethostname():
        return False
    # Otherwise the process id now belongs to another process.
    return os.fsencode(run_id) in _command_of(Path("/proc") / str(pid))


def _command_of(process: Path) -> bytes:
    """Return a process' command line; empty if it has ended, or is a kernel process."""
    try:
        for _attempt in range(_MOST_LOOKS):
            if command := (process / "cmdline").read_bytes():
                return command
            # A starting process has no command line for a moment; a zombie never has one again.
            if (process / "stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}:
                break
            time.sleep(_LOOK_SECONDS)
    except OSError:
        pass
    return b""


def _why(progress: ProgressRecord) -> str:
    error = progress.error
    if error is None:
        return ""
    message = error.message.splitlines()
    # The message of our own Failed is a sentence already.
    kind = "" if error.type == "Failed" else f"{error.type}: "
    return error.at_its_line(f"{kind}{message[0] if message else ''}")


def why_not_entered(record: RunRecord, exit_code: str) -> str:
    """Return the log line that says why the run's last job could not enter its environment; empty if none does."""
    if exit_code and exit_code.partition(":")[0] not in map(str, NOT_ENTERED):
        return ""
    run = RunDir(record.path)
    for log in (run.logs / f"{record.job_id}_0_log.out", task_log(run, record.job_id)):
        with suppress(OSError):
            text = safe_files.tail(log, log.parent.parent, _TAIL_BYTES)[0] if log else ""
            if lines := [line for line in text.splitlines() if line.startswith(REASON)]:
                return lines[-1].strip()[:500]
    return ""


def _exit(job: Job) -> str:
    if job.exit_code.startswith(f"{SRUN_FAILED}:"):
        return _("Slurm could not start it on its nodes; truba logs shows why, and the same command resumes it")
    if job.exit_code in {"", "0:0"} or job.state != "FAILED":
        return ""
    return _("exit code {code}", code=job.exit_code)
