"""Record a run's starts, count lost steps, requeue its job, and give up after repeated starts without progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.events import Event, Kind, completed
from truba_runner.runs.record_shapes import ProgressRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import commands, jobs

if TYPE_CHECKING:
    from truba_runner.slurm.request import Request

# After this many consecutive starts from one step, that step itself is assumed to kill the run.
FRUITLESS_STARTS = 3
# A job's time starts before its worker does, and Slurm's signal may come half a minute early.
_CLOCKS_APART_SECONDS = 90
# Exit status of a packed run's worker if the run is to be requeued: the job is requeued when all its runs have ended.
REQUEUE_STATUS = 75


class GaveUp(Failed):
    """A run without progress over several starts, which is not started again."""


def begin(run: RunDir, job_id: str, position: Position, about: Event) -> None:
    """Record a start from `position`, and how many steps of the previous start are lost; `about`: its other fields.

    Raises:
        GaveUp: the job was already started from here `FRUITLESS_STARTS` times in a row; preempted starts, and those on
            bad nodes, don't count.
    """
    fruitless, excused, at = 0, False, (position.epoch, position.step)
    for event in reversed(run.submissions()):
        if event.kind in {Kind.BROKEN_OFF, Kind.BAD_NODE}:
            excused = True
        elif event.kind == Kind.LOOKED:  # Each start begins with it; one that left its node at once has no `started`.
            excused = False
        elif event.kind == Kind.STARTED:
            if (event.job_id, event.position) != (job_id, at):
                break
            fruitless, excused = fruitless + (not excused), False
    progress = run.progress()
    # `account` needs `steps_per_epoch` if this checkpoint turns out to be damaged.
    lost, steps_per_epoch = _steps_lost(progress, position), progress.steps_per_epoch
    start = Event(Kind.STARTED, time.time(), job_id, position=at, steps_lost=lost, steps_per_epoch=steps_per_epoch)
    run.append_submission(completed(start, about))
    if fruitless >= FRUITLESS_STARTS:
        raise GaveUp(
            _(
                "{count} starts from epoch {epoch}, step {step} made no progress, so the run is not started again. "
                "The log shows how they ended; fix the cause and submit again.",
                count=fruitless,
                epoch=position.epoch + 1,
                step=position.step,
            )
        )


def broken_off(run: RunDir, job_id: str, request: Request) -> None:
    """Record that a start was preempted, not timed out.

    Being preempted during work that restarts from its beginning (lr_find, packing) is not the run's fault; but work
    that does not fit into the time limit never progresses.
    """
    now = time.time()
    started = next((event.time for event in reversed(run.submissions()) if event.kind == Kind.STARTED), now)
    if now - started < 60 * request.time_minutes - request.signal_seconds - _CLOCKS_APART_SECONDS:
        run.append_submission(Event(Kind.BROKEN_OFF, now, job_id))


def _steps_lost(progress: ProgressRecord, position: Position) -> int:
    """Return the steps between `position` and the last recorded progress: they are trained again."""
    per_epoch = progress.steps_per_epoch
    if progress.epoch is None or progress.step is None or per_epoch is None:
        return 0
    trained = (progress.epoch - 1) * per_epoch + progress.step
    return max(0, trained - position.epoch * per_epoch - position.step)


def account(events: Sequence[Event]) -> dict[str, Any]:
    """Return `restarts`, `requeues`, `steps_lost` and `seconds_restoring` over all of a run's jobs, for its result."""
    duplicates = {event.job_id for event in events if event.kind == Kind.DUPLICATE}
    events = [event for event in events if not event.job_id or event.job_id not in duplicates]
    starts = [event for event in events if event.kind == Kind.STARTED]
    restoring = [event.seconds for event in events if event.kind == Kind.RESTORED]
    return {
        "restarts": max(0, len(starts) - 1),
        "requeues": sum(event.kind == Kind.REQUEUED for event in events),
        "steps_lost": sum(event.steps_lost for event in starts) + _steps_passed_over(events),
        "seconds_restoring": round(sum(restoring), 3),
    }


def _steps_passed_over(events: Sequence[Event]) -> int:
    """Sum the steps between the newest checkpoint at each start and the one that could be read."""
    passed_over, start = 0, None
    for event in events:
        if event.kind == Kind.STARTED:
            start = event
        elif event.kind == Kind.RESTORED and start and start.position and event.position:
            (epoch, step), (read_epoch, read_step) = start.position, event.position
            per_epoch = start.steps_per_epoch or 0
            passed_over += max(0, (epoch - read_epoch) * per_epoch + step - read_step)
            start = None
    return passed_over


def requeue(run: RunDir, job_id: str, most: int, packed: bool = False) -> bool:
    """Requeue the run's own job, under its id; return False if it is cancelled, or requeued already.

    For packed runs (`packed`), which share the job, only record the requeue.

    Raises:
        truba_runner.errors.Failed: the run was requeued `most` times already.
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not allow the requeue.
    """
    if not jobs.would_end_for_good(job_id):
        return False
    if account(run.submissions())["requeues"] >= most:
        raise Failed(
            "the run was requeued {count} times (resources.max_requeues) and is not finished; submit it again",
            count=most,
        )
    run.append_submission(Event(Kind.REQUEUED, time.time(), job_id))
    if not packed:
        commands.requeue(job_id)
    return True
