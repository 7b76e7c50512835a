"""`truba why RUN`: print why a run is pending or has ended, the evidence, and what to do."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truba_runner.commands import parser
from truba_runner.errors import listed
from truba_runner.language import _, counted
from truba_runner.runs import runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.search.directory import search_of
from truba_runner.search.overview import job_runs
from truba_runner.status.printing import print_json
from truba_runner.status.slurm_jobs import known_jobs_or_records
from truba_runner.storage import safe_files
from truba_runner.why.cases import cases_of
from truba_runner.why.groups import Group, groups

_LISTED = 5
_NARROWEST, _WIDEST = 60, 120


def main(arguments: Sequence[str]) -> int:
    """Print why each run is pending or has ended; runs with the same reasons are grouped, the largest group first."""
    options = parser("why", _("Shows why a run is pending or has ended, the evidence, and what to do."))
    options.add_argument("run", nargs="+", help=_("a run's, a sweep's or a search's id, or any unique beginning of it"))
    given = options.parse_args(arguments)
    named = {prefix: _runs(prefix, given.runs) for prefix in given.run}
    every = list({run.path: run for runs in named.values() for run in runs}.values())
    jobs = known_jobs_or_records([run.record() for run in every])
    found = groups(cases_of(every, jobs))
    if given.json:
        print_json([row for group in found for row in group.as_json()])
        return 0
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    for number, group in enumerate(found):
        print("\n" * (number > 0) + "\n".join(_lines(group, width)))
    return 0


def _runs(prefix: str, runs_folder: Any) -> list[RunDir]:
    """Return the runs that a prefix names: a run, the submitted runs of a sweep, or the workers of a search."""
    if sweep := runs_folders.find_sweep(prefix, runs_folder):
        runs = [sweep.run(member.run) for member in sweep.members()]
        return [run for run in runs if safe_files.is_file(run.submissions_file)]
    run = runs_folders.find(prefix, runs_folder)
    search = search_of(run)
    return (job_runs(search) or [run]) if search else [run]


def _lines(group: Group, width: int) -> Iterator[str]:
    """Yield the lines for a group of runs."""
    yield _headline(group)
    for finding in group.findings:
        labels: Mapping[str, str] = {_("why"): finding.means, _("do"): finding.do}
        for label, text in labels.items():
            yield from _block(label, text, width)
    if group.start:
        yield from _block(_("start"), group.start, width)
    seen = dict.fromkeys((one.source, one.says) for finding in group.findings for one in finding.evidence)
    for number, (source, says) in enumerate(seen):
        yield from _block(_("evidence") if number == 0 else "", f"{source}: {says}", width)


def _headline(group: Group) -> str:
    case = group.cases[0]
    state = case.state.state
    if len(group.cases) > 1:
        names = listed([one.run.id for one in group.cases], _LISTED)
        return counted("{count} run", "{count} runs", len(group.cases)) + f" {state}: {names}"
    job = "" if not case.job_id or case.job_id.startswith("local-") else ", " + _("job {job_id}", job_id=case.job_id)
    return f"{case.run.id}: {state}{job}"


def _block(label: str, text: str, width: int) -> Iterator[str]:
    margin = 12
    first, rest = f"  {label:<{margin}}", " " * (margin + 2)
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
