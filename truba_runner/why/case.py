"""The facts from which one run is diagnosed: its state, Slurm's records of its job, and its log."""

from __future__ import annotations

import getpass
import pwd
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.runs import log as watch
from truba_runner.runs.events import Event
from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState
from truba_runner.runs.sweep_directory import task_log
from truba_runner.slurm.queries import Start
from truba_runner.storage import safe_files

# Only the end of a log is read: there a run writes why it ends.
_TAIL_BYTES = 65_536
# The first line of every start of a run (worker/run.py); the lines above it are from earlier starts.
_BEGINS = re.compile(r"^(?:run \S+, job \S+, on \S+|eğitim \S+, iş \S+, \S+ üzerinde), ", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """A run, its state and Slurm's records of its job: `queued` from squeue, `starts` from sacct; both may be empty."""

    run: RunDir
    state: RunState
    # The run's last job; empty if it had none.
    job_id: str = ""
    # The intent of its last submission; without a kind if there was none.
    intent: Event = Event()
    queued: Mapping[str, str] = field(default_factory=dict)
    starts: Sequence[Start] = ()
    # Why the job was removed from the queue before it started; empty if it was not.
    dropped: str = ""
    slurm_answers: bool = True

    @property
    def last(self) -> Mapping[str, str]:
        """sacct's fields of the job's last start; empty if accounting has none."""
        return self.starts[-1].fields if self.starts else {}

    @property
    def slurms_state(self) -> str:
        """Slurm's state of the job, for CANCELLED also by whom; empty if Slurm does not know the job."""
        if self.state.job is None:
            return ""
        word = self.last.get("State", "")
        if self.state.job.live or not word.startswith("CANCELLED"):
            return self.state.job.state
        if self.last.get("Start", "None") in {"None", "Unknown", ""}:
            return "CANCELLED not started"
        return "CANCELLED by you" if self.cancelled_by == getpass.getuser() else word

    @property
    def cancelled_by(self) -> str:
        """Name of the user who cancelled the job; empty if Slurm does not report it."""
        found = re.search(r"by (\d+)", self.last.get("State", ""))
        if found is None:
            return ""
        try:
            return pwd.getpwuid(int(found[1])).pw_name
        except KeyError:
            return f"uid {found[1]}"

    @property
    def exit_code(self) -> str:
        """`CODE:SIGNAL` as sacct writes it; the worst of the job's steps if the job itself has none."""
        job = self.state.job
        return (job.exit_code if job else "") or self.last.get("ExitCode", "")

    @property
    def wants_gpus(self) -> bool:
        """Whether the run may lack a GPU: it requested one from Slurm, or its request is not on record."""
        if self.job_id.startswith("local-"):
            return False
        return bool(self.intent.request.get("gpus", 1))

    @property
    def error(self) -> ErrorRecord | None:
        """The exception that ended the run's last job, as the run recorded it."""
        if self.state.state == damage.DAMAGED:
            return None
        progress = self.run.progress()
        return progress.error if progress.job_id == self.job_id else None

    @property
    def values(self) -> dict[str, str]:
        """Values for the placeholders in the table's sentences."""
        job = self.state.job
        request = self.intent.request
        known = {
            "partition": (job.partition if job else "") or request.get("partition"),
            "account": self.queued.get("account") or self.last.get("Account") or request.get("account"),
            "qos": self.queued.get("qos") or self.last.get("QOS"),
            "time_limit": (job.time_limit if job else "") or self.last.get("Timelimit"),
            "by": self.cancelled_by,
        }
        ids = {"run": self.run.id, "job_id": self.job_id, "array_id": self.job_id.partition("_")[0]}
        values = {key: str(value or "?") for key, value in known.items()}
        return {**ids, **values, "user": getpass.getuser(), "what": _("resources")}

    def logs(self) -> list[Path]:
        """Return the logs of the run's last job: the run's own and, if it is an array task, the task's log."""
        if self.state.state == damage.DAMAGED:
            return []
        found = [watch.latest_log(self.run), task_log(self.run, self.job_id)]
        return [path for path in dict.fromkeys(found) if path is not None]


def last_lines(log: Path, every_start: bool = False) -> list[tuple[int, str]]:
    """Return (number, text) of each non-blank line at the log's end, by default of the last start; 0 if not known."""
    try:
        text, whole = safe_files.tail(log, log.parent.parent, _TAIL_BYTES)
    except OSError:
        return []
    starts = [found.start() for found in _BEGINS.finditer(text)]
    begin = starts[-1] if starts and not every_start else 0
    # A progress bar overwrites its line with carriage returns: keep the text that remains visible.
    lines = [line.rpartition("\r")[2] for line in text[begin:].split("\n")]
    first = text.count("\n", 0, begin) + 1
    return [(first + index if whole else 0, line.rstrip()) for index, line in enumerate(lines) if line.strip()]
