"""Management commands: one file each, with `main(arguments) -> exit status`, quick to start."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner import scheduler
from truba_runner.language import _
from truba_runner.rundir import RunDir, finite
from truba_runner.scheduler import Job, SlurmError
from truba_runner.search.directory import search_of
from truba_runner.search.overview import job_runs
from truba_runner.state import last_job_id


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every command has."""
    made = argparse.ArgumentParser(prog=f"truba {name}", description=description, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help=_("print JSON for programs"))
    made.add_argument(
        "--runs", type=Path, metavar=_("FOLDER"), help=_("look in this runs folder (default: all ever used)")
    )
    return made


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))


def known_jobs(runs: Sequence[RunDir], finished_too: bool = False, quietly: bool = False) -> Mapping[str, Job] | None:
    """What Slurm knows of these runs' jobs, in one squeue and one sacct; None where it does not answer.

    A run whose result is there, one that never met Slurm, and one of another machine's is not asked about; with
    `finished_too`, the queue is asked whether the job of the first is still there. That accounting does not answer is
    said, unless `quietly`: what it would tell stands in part on the runs' own records.
    """
    searches = [(run, search_of(run)) for run in runs if not run.pulled()]
    with_jobs = [job for run, search in searches for job in (job_runs(search) if search else [run])]
    finished = {last_job_id(run) for run in with_jobs if run.result()}
    not_over = {last_job_id(run) for run in with_jobs if not run.result()}
    wanted, ended_or_lost = (_on_slurm(ids) for ids in (not_over | finished if finished_too else not_over, not_over))
    if not wanted:
        return {}
    try:
        jobs = scheduler.queue()
    except SlurmError:
        return None
    try:
        ended = scheduler.accounting(ended_or_lost - {job_id for job_id, job in jobs.items() if job.live})
    except SlurmError as error:
        ended = {}
        if not quietly:
            say_that_accounting_is_silent(error)
    # Of a job that has just ended both know, and accounting its exit code too, once it has heard of the end.
    return {**ended, **jobs, **{job_id: job for job_id, job in ended.items() if not job.live}}


def _on_slurm(job_ids: set[str]) -> set[str]:
    return {job_id for job_id in job_ids if job_id and not job_id.startswith("local-")}


def say_that_accounting_is_silent(error: SlurmError) -> None:
    """The word for it, on standard error."""
    told = _(
        "Slurm's accounting does not answer ({message}): what it knows of ended jobs is missing here",
        message=error.message.splitlines()[-1],
    )
    print(told, file=sys.stderr)
