"""`truba logs RUN [-f]`: print the log of a run's job."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from truba_runner.commands import parser
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs import log as watch
from truba_runner.runs.record_shapes import Stage
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState, last_job_id, progress_of
from truba_runner.runs.sweep_directory import task_log
from truba_runner.search.overview import standing_of
from truba_runner.status.printing import print_json
from truba_runner.status.slurm_jobs import known_jobs
from truba_runner.storage import safe_files

# Interval for asking Slurm whether a followed run has ended; the log itself is read more often.
_ASK_EVERY_SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    """Print the log of the run's latest job; with -f, follow it until the run ends."""
    options = parser("logs", _("Prints the log of a run's latest job and, if the run failed, the reason at the end."))
    options.add_argument("run", help=_("a run's id, or any unique beginning of it"))
    options.add_argument(
        "-f", "--follow", action="store_true", help=_("follow the log until the run ends, with a progress bar")
    )
    given = options.parse_args(arguments)
    run = runs_folders.find(given.run, given.runs)
    if given.json:
        print_json({"run": run.id, "logs": [str(run.logs / name) for name in safe_files.names(run.logs, run.path)]})
        return 0
    if why := damage.of_run(run):
        return _of_damaged(run, why)
    if run.pulled() and watch.latest_log(run) is None:
        place = run.pulled().get("from", "?")
        raise Failed(
            "{run} is a copy without its logs. They are at {place}. Run there: truba logs {run}",
            run=run.id,
            place=place,
        )
    if given.follow:
        watch.follow(run, lambda: watch.latest_log(run), _Ended(run))
    else:
        log = watch.latest_log(run)
        if log is None:
            state = _state(run)
            message = _("{run} has printed nothing yet: {state} {why}", run=run.id, state=state.state, why=state.why)
            raise Failed(message)
        watch.show(log)
        if (slurms := task_log(run, last_job_id(run))) not in {None, log} and slurms is not None:
            watch.show(slurms)
        sys.stdout.flush()
    state = _state(run)
    if not state.live and state.state != "COMPLETED":
        print(f"\n{run.id}: {state.state} {state.why}", file=sys.stderr)
    return 0


def _of_damaged(run: RunDir, why: str) -> int:
    """Print the latest log of a damaged run, whose job and end are not known; return 1 if there is no log."""
    if (log := watch.latest_log(run)) is not None:
        watch.show(log)
        sys.stdout.flush()
    print(f"\n{run.id}: {damage.DAMAGED} {why}", file=sys.stderr)
    return 0 if log is not None else 1


def _state(run: RunDir, followed: bool = False) -> RunState:
    return standing_of(run.record(), known_jobs([run.record()], finished_too=followed, quietly=followed))


class _Ended:
    """Callable that returns whether a run has ended, without asking Slurm at every call."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._recorded: Stage | None = None
        self._asked = 0.0

    def __call__(self) -> bool:
        recorded = progress_of(self._run).state
        ask_now = recorded != self._recorded
        if not ask_now and time.monotonic() - self._asked < _ASK_EVERY_SECONDS:
            return False
        self._recorded, self._asked = recorded, time.monotonic()
        state = _state(self._run, followed=True)
        return not (state.live or state.ending)
