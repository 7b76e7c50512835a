"""Diagnose why a run waits or why it ended: find the matching rows of the table of reasons, with evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.why import evidence
from truba_runner.why.case import Case, last_lines
from truba_runner.why.evidence import Evidence
from truba_runner.why.table import Meaning, meaning, refusal, table

# States for which the log may be more specific than Slurm, as for a run that hung or vanished.
_LOG_TELLS_MORE = {"TIMEOUT", "LOST", "KILLED", "FAILED"}
# Reasons that a process reports because another one died: if the log has any other reason, that is the cause.
_CONSEQUENCES = {"nccl-remote", "nccl-timeout", "nccl", "connection-refused", "exit-aborted"}
# Lines of TensorFlow's logger, which warns about things it can do without, such as a GPU.
_CHATTER = re.compile(r"^(\d{4}-\d\d-\d\d \S+: |[IWE]\d{4} \S+ +\d+ |WARNING: All log messages)")

# Lines that frameworks print at every start on a machine without a GPU.
_NO_GPU = re.compile(
    r"failed call to cuInit|Could not find cuda drivers|Unable to register cu\w+ factory"
    r"|Cannot dlopen some GPU libraries|UserWarning: (CUDA initialization|Can't initialize NVML)|Falling back to cpu",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """One reason: the id of its row, its texts in the user's language, and its evidence."""

    reason: str
    means: str
    do: str
    evidence: list[Evidence] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        lines = [{"source": one.source, "says": one.says} for one in self.evidence]
        return {"reason": self.reason, "means": self.means, "do": self.do, "evidence": lines}


@dataclass(frozen=True)
class _Match:
    """A row that matched, with the line on which it matched and further lines."""

    meaning: Meaning
    on: Evidence
    more: Sequence[Evidence] = ()


def diagnose(case: Case, look_closer: bool = True) -> list[Finding]:
    """Return why a run waits or why it ended, the cause first; never empty.

    Without `look_closer`, evidence that needs further queries to Slurm is left out.
    """
    findings, meanings = [], set()
    for match in _matches(case):
        row = match.meaning.row
        means, do = match.meaning.said(case.values)
        if means in meanings:
            continue
        meanings.add(means)
        more = [line for name in row.look for line in evidence.look(name, case)] if look_closer else []
        findings.append(Finding(row.id, means, do, [match.on, *match.more, *evidence.of_error(case, match.on), *more]))
    return findings


def _matches(case: Case) -> Sequence[_Match]:
    """Return the rows that match, the cause first."""
    state = case.state
    if state.live:
        return [_live(case)]
    if case.dropped:
        return [_Match(_sure("record", "DROPPED"), Evidence(case.run.id, case.dropped))]
    slurms = case.slurms_state
    ended_abnormally = slurms not in {"", "COMPLETED", "FAILED"} and state.state != "COMPLETED"
    if ended_abnormally and (ended := meaning("ended", slurms)):
        first = _Match(ended, evidence.of_the_end(case))
    elif state.state == "FAILED":
        return _failed(case)
    else:
        known = refusal(case.run, state.why) if state.state == "REFUSED" else None
        first = _Match(known or _sure("record", _word_on_record(case)), Evidence(case.run.id, state.why or state.state))
    also = _in_log(case) if state.state in _LOG_TELLS_MORE else None
    return [first, *([also] if also else [])]


def _live(case: Case) -> _Match:
    state = case.state
    reason = case.queued.get("reason") or (state.job.reason if state.job else "")
    # Such a state says less than the reason, if Slurm gives the hold's: who may release it, for example.
    in_hold = state.state in {"REQUEUE_HOLD", "SPECIAL_EXIT"} and "held" in reason
    if state.state != "PENDING" and not in_hold:
        return _Match(
            _sure("ended", state.state),
            Evidence("squeue" if state.job else case.run.id, evidence.as_slurm_says(case) or state.state),
        )
    asked = reason
    canary = case.intent.canary
    if reason == "JobHeldUser" and canary:
        asked = f"{reason} (canary {canary})"
    elif reason == "BeginTime" and len(case.starts) > 1:
        asked = f"{reason} (requeued)"
    return _Match(_sure("waiting", asked), Evidence("squeue", reason or "None"))


def _failed(case: Case) -> list[_Match]:
    """Return the rows for a failed run: by the recorded exception, else by the log, else by the exit code."""
    if error := case.error:
        line = f"{error.type}: {error.message.strip()}"
        on = Evidence(case.run.id, line.splitlines()[0][:500])
        known = meaning("log", line)
        if known is None:
            return [_Match(_sure("record", _kind_of(error)), on), *_earlier_causes(case, error)]
        if known.row.id in _CONSEQUENCES and (cause := _in_log(case)) and cause.meaning.row.id not in _CONSEQUENCES:
            return [cause, _Match(known, on)]
        return [_Match(known, on)]
    if said := _in_log(case):
        return [said]
    on = evidence.of_the_end(case)
    if known := meaning("exit", case.exit_code):
        return [_Match(known, on, evidence.end_of_logs(case))]
    return [_Match(_sure("record", f"FAILED without {'words' if case.slurms_state == 'FAILED' else 'result'}"), on)]


def _kind_of(error: ErrorRecord) -> str:
    if error.type != "Failed":
        return "FAILED raised"
    return "FAILED gave up" if error.gave_up else "FAILED told"


def _earlier_causes(case: Case, error: ErrorRecord) -> list[_Match]:
    """Return why the starts ended, if the run was given up after several of them."""
    said = _in_log(case, every_start=True) if _kind_of(error) == "FAILED gave up" else None
    return [said] if said else []


def _word_on_record(case: Case) -> str:
    if case.state.elsewhere:
        return f"{case.state.state} elsewhere {case.state.elsewhere}"
    return "UNKNOWN silent" if case.state.state == "UNKNOWN" and not case.slurm_answers else case.state.state


def _in_log(case: Case, every_start: bool = False) -> _Match | None:
    """Return the first row of the table that matches a line at the log's end, or else a row of `_CONSEQUENCES`."""
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
    """Yield each row of the table that matches a line, with the last such line, in the table's order."""
    last: dict[str, _Match] = {}
    for name, number, line in lines:
        if known := meaning("log", line):
            where = f"{name}:{number}" if number else name
            last[known.row.id] = _Match(known, Evidence(where, line.strip()[:500]))
    order = {row.id: index for index, row in enumerate(table()["log"])}
    yield from sorted(last.values(), key=lambda match: order[match.meaning.row.id])


def _sure(section: str, text: str) -> Meaning:
    """Return the section's row for `text`, or the row for an unknown record."""
    found = meaning(section, text) or meaning("record", "?")
    if found is None:
        raise LookupError(f"the table has no row for {section}: {text}")
    return found
