"""`truba doctor`: check in parallel, with a time limit, that everything a run needs is in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from truba_runner.config.schema import Experiment
from truba_runner.language import _

# A hanging file system must not hide the findings of other checks.
PATIENCE_SECONDS = 10.0
FAULT, WARNING, NOTE, OK = "fault", "warning", "note", "ok"


@dataclass(frozen=True)
class Finding:
    """One line of the report, or a table. `level`: a fault prevents work, a warning may, a note is only information."""

    level: str
    subject: str
    says: str
    remedy: str = ""
    # A table's rows, the first with the names of its columns.
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Patient:
    """What is checked: the composed experiment, with its cluster and environment, and the user's home.

    `others`: the user's other experiments, by name, composed with the same overrides.
    """

    experiment: Experiment
    home: Path = field(default_factory=Path.home)
    others: Mapping[str, Experiment] = field(default_factory=dict)


Check = Callable[[Patient], Iterable[Finding]]


def examine(
    checks: Sequence[tuple[str, Check]], patient: Patient, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[Finding]:
    """Run the checks in parallel and yield their findings in the order of the checks.

    A check that raises or does not end in time becomes a finding; the others are not affected.
    """
    running = [_Running(subject, check, patient) for subject, check in checks]
    deadline = time.monotonic() + patience_seconds
    for one in running:
        one.thread.join(max(0.0, deadline - time.monotonic()))
        yield from one.findings()


class _Running:
    """One check in a daemon thread, for which the program does not wait at exit."""

    def __init__(self, subject: str, check: Check, patient: Patient) -> None:
        self._subject, self._check, self._patient = subject, check, patient
        self._found: list[Finding] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for finding in self._check(self._patient):
                self._found.append(finding)
        except Exception as error:
            message = _("the check itself failed: {error}", error=repr(error))
            self._found.append(Finding(WARNING, self._subject, message, _("Please tell the program's authors.")))

    def findings(self) -> list[Finding]:
        found = list(self._found)
        if self.thread.is_alive():
            late = _("no answer in time; the system that this check queries is very slow or hangs")
            found.append(
                Finding(WARNING, self._subject, late, _("Try again later; if it lasts, tell the site's support."))
            )
        return found
