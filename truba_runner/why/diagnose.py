"""From what is known of a run to why it waits or why it ended: the rows of the table that hold, with their evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from truba_runner.why import evidence
from truba_runner.why.case import Case, last_lines
from truba_runner.why.evidence import Evidence
from truba_runner.why.table import Meaning, meaning, table

# States after which the log may tell more than Slurm's own word does: a run that hung, one that vanished.
_LOG_TELLS_MORE = {"TIMEOUT", "LOST", "KILLED", "FAILED"}
# What one process tells when another is gone: where the log has something else, that is the cause.
_CONSEQUENCES = {"nccl-remote", "nccl-timeout", "nccl", "connection-refused", "exit-aborted"}
# TensorFlow's own logger. It warns of what it can do without, such as a GPU.
_CHATTER = re.compile(r"^(\d{4}-\d\d-\d\d \S+: |[IWE]\d{4} \S+ +\d+ |WARNING: All log messages)")

# What frameworks print at every start where they find no GPU.
_NO_GPU = re.compile(
    r"failed call to cuInit|Could not find cuda drivers|Unable to register cu\w+ factory"
    r"|Cannot dlopen some GPU libraries|UserWarning: (CUDA initialization|Can't initialize NVML)|Falling back to cpu",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """One reason: its row's id, its words in the user's language, and what they go by."""

    reason: str
    means: str
    do: str
    evidence: list[Evidence] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        told = [{"source": one.source, "says": one.says} for one in self.evidence]
        return {"reason": self.reason, "means": self.means, "do": self.do, "evidence": told}


@dataclass(frozen=True)
class _Match:
    """A row that matched, and where."""

    meaning: Meaning
    on: Evidence
    more: Sequence[Evidence] = ()


def diagnose(case: Case, look_closer: bool = True) -> list[Finding]:
    """Why a run waits or why it ended, the cause first; never empty.

    Not to `look_closer` leaves out what costs further questions to Slurm.
    """
    found, told = [], set()
    for match in _matches(case):
        row = match.meaning.row
        means, do = match.meaning.said(case.values)
        if means in told:
            continue
        told.add(means)
        more = [line for name in row.look for line in evidence.look(name, case)] if look_closer else []
        found.append(Finding(row.id, means, do, [match.on, *match.more, *evidence.of_error(case, match.on), *more]))
    return found


def _matches(case: Case) -> Sequence[_Match]:
    """The rows that hold, the cause first."""
    state = case.state
    if state.live:
        return [_live(case)]
    if case.dropped:
        return [_Match(_sure("record", "DROPPED"), Evidence(case.run.id, case.dropped))]
    slurms = case.slurms_state
    ended = (
        meaning("ended", slurms) if slurms not in {"", "COMPLETED", "FAILED"} and state.state != "COMPLETED" else None
    )
    if ended is not None:
        also = _in_log(case) if state.state in _LOG_TELLS_MORE else None
        on = Evidence("sacct", evidence.as_slurm_says(case))
        return [_Match(ended, on), *([also] if also else [])]
    if state.state == "FAILED":
        return _failed(case)
    on = Evidence(case.run.id, state.why or state.state)
    first = _Match(_sure("record", _word_on_record(case)), on)
    also = _in_log(case) if state.state in _LOG_TELLS_MORE else None
    return [first, *([also] if also else [])]


def _live(case: Case) -> _Match:
    state = case.state
    if state.state != "PENDING":
        return _Match(
            _sure("ended", state.state),
            Evidence("squeue" if state.job else case.run.id, evidence.as_slurm_says(case) or state.state),
        )
    reason = case.queued.get("reason") or (state.job.reason if state.job else "")
    asked = reason
    canary = case.intent.get("canary")
    if reason == "JobHeldUser" and canary:
        asked = f"{reason} (canary {canary})"
    elif reason == "BeginTime" and len(case.starts) > 1:
        asked = f"{reason} (requeued)"
    return _Match(_sure("waiting", asked), Evidence("squeue", reason or "None"))


def _failed(case: Case) -> list[_Match]:
    """A run that ended badly: what the exception on record, else the log, else the exit code says."""
    if error := case.error:
        line = f"{error.get('type', '')}: {str(error.get('message', '')).strip()}"
        on = Evidence(case.run.id, line.splitlines()[0][:500])
        known = meaning("log", line)
        if known is None:
            return [_Match(_sure("record", _kind_of(error)), on), *_earlier_causes(case, error)]
        if known.row.id in _CONSEQUENCES and (cause := _in_log(case)) and cause.meaning.row.id not in _CONSEQUENCES:
            return [cause, _Match(known, on)]
        return [_Match(known, on)]
    if said := _in_log(case):
        return [said]
    on = Evidence("sacct", evidence.as_slurm_says(case))
    if known := meaning("exit", case.exit_code):
        return [_Match(known, on, evidence.end_of_logs(case))]
    return [_Match(_sure("record", "FAILED without result"), on)]


def _kind_of(error: Any) -> str:
    if error.get("type") != "Failed":
        return "FAILED raised"
    return "FAILED gave up" if error.get("gave_up") else "FAILED told"


def _earlier_causes(case: Case, error: Any) -> list[_Match]:
    """Of a run that was given up after several starts, how these ended."""
    said = _in_log(case, every_start=True) if _kind_of(error) == "FAILED gave up" else None
    return [said] if said else []


def _word_on_record(case: Case) -> str:
    return "UNKNOWN silent" if case.state.state == "UNKNOWN" and not case.slurm_answers else case.state.state


def _in_log(case: Case, every_start: bool = False) -> _Match | None:
    """The row that the log's end speaks of: the first of the table that matches a line, what others cause last."""
    lines = [(log.name, number, line) for log in case.logs() for number, line in last_lines(log, every_start)]
    if every_start or not case.wants_gpus:
        lines = [one for one in lines if not _NO_GPU.search(one[2])]
    plain = [one for one in lines if not _CHATTER.match(one[2])]
    for chosen in (plain, lines):
        found = list(_rows_in(chosen))
        causes = [match for match in found if match.meaning.row.id not in _CONSEQUENCES]
        if found:
            return (causes or found)[0]
    return None


def _rows_in(lines: Sequence[tuple[str, int, str]]) -> Iterator[_Match]:
    """Each row of the table that a line matches, by the last such line, in the table's order."""
    last: dict[str, _Match] = {}
    for name, number, line in lines:
        if known := meaning("log", line):
            where = f"{name}:{number}" if number else name
            last[known.row.id] = _Match(known, Evidence(where, line.strip()[:500]))
    order = {row.id: index for index, row in enumerate(table()["log"])}
    yield from sorted(last.values(), key=lambda match: order[match.meaning.row.id])


def _sure(section: str, text: str) -> Meaning:
    """The row for it, or the section's last, which matches anything."""
    found = meaning(section, text) or meaning("record", "?")
    if found is None:
        raise LookupError(f"the table has no row for {section}: {text}")
    return found
