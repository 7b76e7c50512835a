"""One squeue and one sacct for many runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import is_slurms, last_job_id
from truba_runner.search.directory import search_of
from truba_runner.search.overview import job_runs
from truba_runner.slurm import jobs as slurm_jobs
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import Job


def _last_jobs(run: RunDir) -> list[tuple[str, bool]]:
    """The job that a run was last given, and whether its result is there; of a search, of each worker.

    None of those that cannot be read, and of another machine's.
    """
    try:
        search = None if run.pulled() else search_of(run)
        with_jobs = job_runs(search) if search else [] if run.pulled() else [run]
        return [(last_job_id(one), bool(one.result())) for one in with_jobs]
    except OSError:
        return []


def known_jobs(runs: Sequence[RunDir], finished_too: bool = False, quietly: bool = False) -> Mapping[str, Job] | None:
    """What Slurm knows of these runs' jobs, in one squeue and one sacct; None where it does not answer.

    A run whose result is there, one that never met Slurm, and one of another machine's is not asked about; with
    `finished_too`, the queue is asked whether the job of the first is still there. That accounting does not answer is
    said, unless `quietly`: what it would tell stands in part on the runs' own records.
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
    # Of a job that has just ended both know, and accounting its exit code too, once it has heard of the end.
    return {**ended, **jobs, **{job_id: job for job_id, job in ended.items() if not job.live}}


def say_that_accounting_is_silent(error: SlurmError) -> None:
    """The word for it, on standard error."""
    told = _(
        "Slurm's accounting does not answer ({message}): what it knows of ended jobs is missing here",
        message=error.message.splitlines()[-1],
    )
    print(told, file=sys.stderr)
