"""Adopts the job of a submission that was interrupted."""

from __future__ import annotations

import time
from typing import Any

from truba_runner.runs import events
from truba_runner.runs.run_directory import RunDir, sweep_events_file
from truba_runner.slurm import jobs

# A job that an interrupted sbatch has asked for shows in the queue within this time.
SETTLE_SECONDS = 10.0


def settle(run: RunDir) -> str | None:
    """The job id of the run's latest submission, found in the queue where the submission was cut short.

    None: nothing was ever submitted, or Slurm never got it.

    Raises:
        SlurmError: Slurm does not answer.
    """
    told = run.submissions()
    intent = next((event for event in reversed(told) if event["event"] == "intent"), None)
    if intent is None:
        return None
    for event in reversed(told):
        if event.get("token") == intent["token"] and event["event"] == "submitted":
            return str(event["job_id"])
        if event.get("token") == intent["token"] and event["event"] in {"refused", "lost"}:
            return None
        if event["event"] == "started" and event.get("job_name") == intent["job_name"]:
            return str(event["job_id"])
    asked = [
        event["time"] for event in told if event.get("token") == intent["token"] and event["event"] == "unanswered"
    ]
    return _adopt(run, intent, max([intent["time"], *asked]))


def _adopt(run: RunDir, intent: dict[str, Any], asked: float) -> str | None:
    """Looks for an intent's job in the queue, for as long as it may still be on its way there, `asked` for then."""
    # Another node's clock may be ahead: what was asked for in the future is taken for just asked for.
    age_seconds = min(SETTLE_SECONDS, max(0.0, time.time() - asked))
    until = time.monotonic() + SETTLE_SECONDS - age_seconds
    while True:
        if taken := jobs.jobs_named(intent["job_name"]):
            _answer(run, intent, {"event": "submitted", "job_id": taken[0], "adopted": True})
            return _task(taken[0], intent)
        if time.monotonic() > until:
            _answer(run, intent, {"event": "lost"})
            return None
        time.sleep(0.5)


def _answer(run: RunDir, intent: dict[str, Any], event: dict[str, Any]) -> None:
    """Records what became of an intent: with the sweep's arrays where it is one of them, for all of its runs."""
    told = {**event, "token": intent["token"]}
    if "sweep" in intent:
        events.append(sweep_events_file(run.path.parent, intent["sweep"]), told)
    else:
        run.append_submission({**told, "job_id": _task(told["job_id"], intent)} if "job_id" in told else told)


def _task(job_id: str, intent: dict[str, Any]) -> str:
    """The run's own part of a job array."""
    index = intent.get("array_index")
    return job_id if index is None else f"{job_id}_{index}"
