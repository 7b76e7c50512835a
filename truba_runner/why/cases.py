"""Collect the cases of several runs with one squeue and one sacct for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from truba_runner.runs import damage
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState, dropped
from truba_runner.search.overview import standing_of
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.queries import Start
from truba_runner.why.case import Case


def cases_of(runs: Sequence[RunDir], jobs: Mapping[str, Job] | None) -> list[Case]:
    """Return one case for each run; `jobs` are their Slurm jobs, or None if Slurm does not answer."""
    found = [_on_record(run, jobs) for run in runs]
    queued = _queued() if any(case.state.live and case.state.job for case in found) else {}
    starts = _starts([case.job_id for case in found if case.state.job is not None])
    return [replace(case, queued=queued.get(case.job_id, {}), starts=starts.get(case.job_id, [])) for case in found]


def _on_record(run: RunDir, jobs: Mapping[str, Job] | None) -> Case:
    """Return the case from the records and `jobs` alone; if the records are damaged, one that says what is wrong."""
    record = run.record()
    if why := damage.of_record(record):
        return Case(run, RunState(damage.DAMAGED, live=False, job=None, why=why))
    try:
        state, why = standing_of(record, jobs), dropped(record.events)
        return Case(run, state, record.job_id, record.intent, dropped=why, slurm_answers=jobs is not None)
    except OSError as error:  # The run was deleted meanwhile, or its disk has failed.
        return Case(run, RunState(damage.DAMAGED, live=False, job=None, why=str(error)))


def _queued() -> Mapping[str, Mapping[str, str]]:
    try:
        return queries.queued()
    except SlurmError:
        return {}


def _starts(job_ids: Sequence[str]) -> Mapping[str, Sequence[Start]]:
    try:
        return queries.starts(job_ids)
    except SlurmError:
        return {}
