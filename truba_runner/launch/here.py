"""Train a run in the foreground."""

from __future__ import annotations

from truba_runner.errors import Refused
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.storage import folder_lock
from truba_runner.submission import changed_code
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared


def train_here(prepared: Prepared) -> Outcome:
    """Train a run on this machine and wait until it ends."""
    from truba_runner.submission.local import see_through, start_here

    run = prepared.run
    action, stopped = Action.FINISHED, False
    if not run.result():
        with folder_lock.lock(run.path.parent):
            live = state_of(run.record(), {}).live
            if not live and (problem := changed_code.problem(prepared)):
                raise Refused(problem)
            worker = None if live else start_here(prepared)
        action = Action.RUNNING
        if worker is not None:
            stopped = see_through(prepared, worker)
            action = Action.TRAINED if run.result() else Action.FAILED
    return Outcome(run.id, str(run.path), action, last_job_id(run), stopped)
