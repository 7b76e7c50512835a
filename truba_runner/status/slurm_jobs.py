"""Query Slurm about the jobs of many runs, with one squeue and one sacct."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from truba_runner.language import _
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import elsewhere, is_slurms
from truba_runner.search.overview import with_jobs
from truba_runner.slurm import jobs as slurm_jobs
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import Job


def _last_jobs(record: RunRecord) -> list[tuple[str, bool]]:
    """Return (last job id, has result) of a run or a search's workers, without jobs of other Slurm clusters."""
    try:
        if record.pulled:
            return []
        records = [run.record() for run in with_jobs(RunDir(record.path))]
        return [(one.job_id, bool(one.result)) for one in records if not elsewhere(one)]
    except OSError:
        return []


def known_jobs_or_records(runs: Sequence[RunRecord], finished_too: bool = False) -> Mapping[str, Job] | None:
    """Return what `known_jobs` does, and say on standard error if Slurm does not answer."""
    if (jobs := known_jobs(runs, finished_too)) is None:
        print(_("Slurm does not answer: the states shown are the last recorded ones"), file=sys.stderr)
    return jobs


def known_jobs(
    runs: Sequence[RunRecord], finished_too: bool = False, quietly: bool = False
) -> Mapping[str, Job] | None:
    """Return the jobs of these runs that Slurm knows, with one squeue and one sacct; None if Slurm does not answer.

    Slurm is not asked about runs that have their result, never had a Slurm job, or belong to another machine; with
    `finished_too`, squeue is asked about jobs of finished runs. If accounting does not answer, a warning is printed
    unless `quietly`: the runs' own records hold a part of what it would report.
    """
    last = [(job_id, finished) for run in runs for job_id, finished in _last_jobs(run) if is_slurms(job_id)]
    not_over = {job_id for job_id, finished in last if not finished}
    if not (last if finished_too else not_over):
        return {}
    try:
        jobs = slurm_jobs.queue()
    except SlurmError:
        return None
    try:
        ended = slurm_jobs.accounting(not_over - {job_id for job_id, job in jobs.items() if job.live})
    except SlurmError as error:
        ended = {}
        if not quietly:
            say_that_accounting_is_silent(error)
    # Both may know a job that has just ended; accounting, once it has recorded the end, also has the exit code.
    return {**ended, **jobs, **{job_id: job for job_id, job in ended.items() if not job.live}}


def say_that_accounting_is_silent(error: SlurmError) -> None:
    """Warn on standard error that sacct does not answer."""
    message = _(
        "Slurm's accounting does not answer ({message}): its data about ended jobs is missing here",
        message=error.message.splitlines()[-1],
    )
    print(message, file=sys.stderr)
