"""`truba doctor`: check that everything a run needs is in place, with a line and a remedy for each check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from truba_runner.commands import parser
from truba_runner.errors import Refused
from truba_runner.language import _
from truba_runner.status.printing import print_json
from truba_runner.terminal import print_table

if TYPE_CHECKING:
    from truba_runner.config.schema import Experiment
    from truba_runner.doctor import Check, Finding

_ANY_EXPERIMENT = "+experiment=mnist"


def main(arguments: Sequence[str]) -> int:
    """Print findings as they come; return 1 if there is a fault that prevents runs."""
    options = parser("doctor", _("Checks that everything a run needs is in place here."))
    options.add_argument(
        "override",
        nargs="*",
        help=_("what to check, written as for a run: +experiment=NAME, cluster=NAME, environment=NAME, …"),
    )
    given = options.parse_args(arguments)
    findings = []
    for finding in _findings(given.override):
        findings.append(finding)
        if not given.json:
            _print(finding)
    faults = sum(finding.level == "fault" for finding in findings)
    if given.json:
        print_json([asdict(finding) for finding in findings])
    elif not faults:
        print(_("found nothing that prevents runs"))
    return 1 if faults else 0


def _findings(overrides: Sequence[str]) -> Iterator[Finding]:
    from truba_runner.doctor import FAULT, Finding, Patient, examine

    try:
        experiment = _composed(overrides)
        given = [word for word in overrides if not _names_experiment(word)]
    except Refused as refused:
        for problem in refused.problems:
            yield Finding(FAULT, _("configuration"), f"{problem.received}: {problem.rule}", problem.remedy)
        return
    yield from examine(
        _checks(), Patient(experiment, others=_others(given) if experiment.cluster.scheduler == "slurm" else {})
    )


def _composed(overrides: Sequence[str]) -> Experiment:
    from truba_runner.config.composing.compose import composed

    named = any(map(_names_experiment, overrides))
    return composed([*([] if named else [_ANY_EXPERIMENT]), *overrides])


def _names_experiment(word: str) -> bool:
    return word.startswith(("+experiment=", "experiment="))


def _others(overrides: Sequence[str]) -> dict[str, Experiment]:
    """Return every experiment of `conf/experiment/` that can be composed with the same overrides."""
    from truba_runner.config.composing.compose import composed
    from truba_runner.storage.package_files import config_names

    found = {}
    for name in sorted(config_names("experiment")):
        with suppress(Refused):  # Its problems are reported when the user chooses it.
            found[name] = composed([f"+experiment={name}", *overrides])
    return found


def _checks() -> Sequence[tuple[str, Check]]:
    """Return all checks in the order of the report; add new ones here."""
    from truba_runner.doctor import files, nodes, programs, slurm, where

    return (
        (_("Python"), programs.python),
        ("Slurm", slurm.controller),
        (_("accounting"), slurm.accounting),
        (_("account"), slurm.account),
        (_("partitions"), slurm.partitions),
        (_("bad nodes"), nodes.bad),
        (_("folders"), files.folders),
        (_("room"), files.room),
        (_("purge"), files.purge),
        (_("home"), files.notes),
        (_("environment"), programs.environment),
        (_("tunnel"), programs.tools),
        (_("where it can run"), where.table),
    )


def _print(finding: Finding) -> None:
    words = {"ok": _("ok"), "note": _("note"), "warning": _("WARNING"), "fault": _("FAULT")}
    remedy = f" {finding.remedy}" if finding.remedy else ""
    end = "." if remedy and not finding.says.endswith(".") else ""
    print(f"{words[finding.level]:<8} {finding.subject}: {finding.says}{end}{remedy}", flush=True)
    if finding.table:
        print_table(finding.table[0], finding.table[1:])
