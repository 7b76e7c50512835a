"""How often a run was started, how far it had come each time, and whether it may be started again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import commands, jobs

if TYPE_CHECKING:
    from truba_runner.slurm.request import Request

# So many starts from the same step, one after the other, mean that the step itself kills the run.
FRUITLESS_STARTS = 3
# A job's clock starts before its worker, and Slurm's signal may be half a minute early.
_CLOCKS_APART_SECONDS = 90
# How a worker that shares its job with others ends when its run is to go on: the job goes back when all have ended.
REQUEUE_STATUS = 75


class GaveUp(Failed):
    """A run that never comes further is not started again."""


def begin(run: RunDir, job_id: str, position: Position, about: Mapping[str, Any]) -> None:
    """Records a start from `position`, and how many steps of the start before it are lost.

    Raises:
        GaveUp: the job has been started from here often enough, and has never come further.
    """
    fruitless, excused = 0, False
    for event in reversed(run.submissions()):
        if event["event"] == "broken_off":
            excused = True
        elif event["event"] == "started":
            if (event["job_id"], event.get("position")) != (job_id, [position.epoch, position.step]):
                break
            fruitless, excused = fruitless + (not excused), False
    progress = run.progress()
    start = {"event": "started", "time": time.time(), "job_id": job_id, "position": [position.epoch, position.step]}
    # Of these the second is for `account`, should that checkpoint turn out to be damaged.
    lost = {"steps_lost": _steps_lost(progress, position), "steps_per_epoch": progress.get("steps_per_epoch")}
    run.append_submission({**start, **lost, **about})
    if fruitless >= FRUITLESS_STARTS:
        raise GaveUp(
            _(
                "{count} starts from epoch {epoch}, step {step} came no further, so there is no other one. The log "
                "shows how they ended; submit again once the cause is mended.",
                count=fruitless,
                epoch=position.epoch + 1,
                step=position.step,
            )
        )


def broken_off(run: RunDir, job_id: str, request: Request) -> None:
    """Records that a start has ended because it was told to, unless its time was up.

    A preemption in the middle of what begins anew each time, an lr_find or a packing, is not the run's fault; what does
    not fit into the time limit never comes further.
    """
    now = time.time()
    started = next((event["time"] for event in reversed(run.submissions()) if event["event"] == "started"), now)
    if now - started < 60 * request.time_minutes - request.signal_seconds - _CLOCKS_APART_SECONDS:
        run.append_submission({"event": "broken_off", "time": now, "job_id": job_id})


def _steps_lost(progress: Mapping[str, Any], position: Position) -> int:
    """Steps that were trained, as far as the record knows, and are trained again."""
    if not {"epoch", "step", "steps_per_epoch"} <= progress.keys():
        return 0
    per_epoch = int(progress["steps_per_epoch"])
    trained = (int(progress["epoch"]) - 1) * per_epoch + int(progress["step"])
    return max(0, trained - position.epoch * per_epoch - position.step)


def account(run: RunDir) -> dict[str, Any]:
    """For the result: `restarts`, `requeues`, `steps_lost` and `seconds_restoring`, over the run's whole life."""
    events = run.submissions()
    duplicates = {event["job_id"] for event in events if event["event"] == "duplicate"}
    events = [event for event in events if event.get("job_id") not in duplicates]
    starts = [event for event in events if event["event"] == "started"]
    restoring = [event["seconds"] for event in events if event["event"] == "restored"]
    return {
        "restarts": max(0, len(starts) - 1),
        "requeues": sum(event["event"] == "requeued" for event in events),
        "steps_lost": sum(event.get("steps_lost", 0) for event in starts) + _steps_passed_over(events),
        "seconds_restoring": round(sum(restoring), 3),
    }


def _steps_passed_over(events: Sequence[Mapping[str, Any]]) -> int:
    """Steps between the checkpoint that each start found and the one that it could read."""
    passed_over, start = 0, None
    for event in events:
        if event["event"] == "started":
            start = event
        elif event["event"] == "restored" and start is not None:
            (epoch, step), (read_epoch, read_step) = start["position"], event["position"]
            per_epoch = int(start.get("steps_per_epoch") or 0)
            passed_over += max(0, (epoch - read_epoch) * per_epoch + step - read_step)
            start = None
    return passed_over


def requeue(run: RunDir, job_id: str, most: int, in_crew: bool = False) -> bool:
    """Puts the run's own job back into the queue, under its own id; False where it is cancelled, or back already.

    In a crew, which shares the job, it is only put on record here.

    Raises:
        Failed: it was requeued `most` times already.
        SlurmError: Slurm does not answer, or may not requeue.
    """
    if not jobs.would_end_for_good(job_id):
        return False
    if account(run)["requeues"] >= most:
        raise Failed(
            _(
                "the run was requeued {count} times (resources.max_requeues) and is not finished; submit it again",
                count=most,
            )
        )
    run.append_submission({"event": "requeued", "time": time.time(), "job_id": job_id})
    if not in_crew:
        commands.requeue(job_id)
    return True
