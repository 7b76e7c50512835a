"""Group runs that wait or ended for the same reason."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.why.case import Case
from truba_runner.why.diagnose import Finding, diagnose


@dataclass
class Group:
    """Cases with the same findings; the evidence is the first case's."""

    cases: list[Case] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def start(self) -> str:
        """When Slurm expects the first of them to start, as text; empty if it has no estimate."""
        expected = sorted(case.queued["start"] for case in self.cases if _waits(case) and case.queued.get("start"))
        if not expected:
            return ""
        try:
            moment = time.mktime(time.strptime(expected[0], "%Y-%m-%dT%H:%M:%S"))
        except ValueError:
            return ""
        when, minutes = expected[0].replace("T", " "), max(0, round((moment - time.time()) / 60))
        hours, rest = divmod(minutes, 60)
        return _(
            "{when}, in {hours} h {minutes} min, by Slurm's estimate; sooner if other jobs end before their time "
            "limits.",
            when=when,
            hours=hours,
            minutes=rest,
        )

    def as_json(self) -> list[dict[str, Any]]:
        """Return one row for each run."""
        return [
            {
                "run": case.run.id,
                "state": case.state.state,
                "job_id": case.job_id,
                "findings": [finding.as_json() for finding in self.findings],
                "estimated_start": case.queued.get("start") or None if _waits(case) else None,
                "directory": str(case.run.path),
            }
            for case in self.cases
        ]


def _waits(case: Case) -> bool:
    # A held job has priority 0, and Slurm's estimate of its start is meaningless.
    return case.state.state == "PENDING" and case.queued.get("priority") != "0"


def groups(cases: Iterable[Case]) -> list[Group]:
    """Group cases by state and reasons, the largest group first."""
    by_reason: dict[tuple[Any, ...], Group] = {}
    for case in cases:
        findings = diagnose(case, look_closer=False)
        # Pending jobs wait for the same thing only in the same partition and account.
        where = (case.values["partition"], case.values["account"]) if _waits(case) else ()
        # Damaged records belong together only if they have the same damage.
        what = (case.state.why,) if case.state.state == damage.DAMAGED else ()
        key = (case.state.state, *what, *where, *(one.reason for one in findings))
        by_reason.setdefault(key, Group()).cases.append(case)
    found = sorted(by_reason.values(), key=lambda group: -len(group.cases))
    for group in found:
        group.findings = diagnose(group.cases[0])
    return found
