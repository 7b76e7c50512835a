"""Management commands: one file each, with `main(arguments) -> exit status`, quick to start."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from truba_runner import damage, scheduler
from truba_runner.language import _
from truba_runner.rundir import RunDir, finite
from truba_runner.scheduler import Job, SlurmError
from truba_runner.search.directory import search_of
from truba_runner.search.overview import job_runs
from truba_runner.state import is_slurms, last_job_id


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


def damaged_row(run: RunDir) -> dict[str, Any]:
    """A run of which nothing sure can be told, for JSON; empty where nothing is wrong with it."""
    why = damage.of_listed(run)
    return {"run": run.id, "state": damage.DAMAGED, "why": why, "directory": str(run.path)} if why else {}


def say_damaged(runs: Iterable[RunDir], file: TextIO | None = None) -> None:
    """A line for each run that is left out since nothing sure can be told of it; on standard error, or in `file`."""
    for run in runs:
        if told := damage.told(run):
            print(told, file=file or sys.stderr)


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
        jobs = scheduler.queue()
    except SlurmError:
        return None
    try:
        ended = scheduler.accounting(not_over - {job_id for job_id, job in jobs.items() if job.live})
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
