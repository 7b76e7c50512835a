"""Entry point of a task of a sweep's job array: `python -m truba_runner.sweeps.task SWEEP_DIR TOKEN`.

It looks up its runs, and trains a single one in this process, or several in processes of their own (`packed_runs`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.sweep_directory import SweepDir, intent_of, runs_of_task
from truba_runner.slurm import job_environment
from truba_runner.storage import private
from truba_runner.sweeps import packed_runs
from truba_runner.training.interrupt import leave
from truba_runner.worker import run as worker


def main(arguments: list[str]) -> int:
    """Train the runs of this array task; return the exit status of the worker, or of the packed runs."""
    sweep, token = SweepDir(Path(arguments[0])), arguments[1]
    if private.refused([sweep.path]):
        return 1
    intent = intent_of(sweep, token)
    runs = runs_of_task(sweep, intent, int(os.environ["SLURM_ARRAY_TASK_ID"]))
    if private.refused(run.path for run in runs):
        return 1
    with _own_log_cleared(sweep):
        if intent.places > 1:
            return packed_runs.train(runs, token, intent.places, intent.share_gpus)
        if not runs[0].is_last_given_to(token):
            print(_("{run} now belongs to another submission; there is nothing to do", run=runs[0].id), flush=True)
            return 0
        _print_into(runs[0].log_of(job_environment.current().job_id))
        return worker.main([str(runs[0].path)])


def _print_into(log: Path) -> None:
    """Redirect the output of this process, and of all that it starts, into a run's log."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(handle, stream.fileno())
    os.close(handle)


@contextmanager
def _own_log_cleared(sweep: SweepDir) -> Iterator[None]:
    """Delete the array task's own log at the end if it is empty: a thousand runs would leave a thousand files."""
    yield
    here = job_environment.current()
    log = sweep.logs / f"{here.job_id}_{here.rank}_log.out"
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()


if __name__ == "__main__":
    try:
        leave(main(sys.argv[1:]))
    except Failed as failed:
        print(failed, file=sys.stderr)
        sys.exit(1)
