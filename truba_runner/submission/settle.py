"""Adopt the job of an interrupted submission."""

from __future__ import annotations

import time
from typing import Any

from truba_runner.runs import events
from truba_runner.runs.run_directory import RunDir, sweep_events_file
from truba_runner.slurm import jobs

# The job of an interrupted sbatch appears in the queue within this time.
SETTLE_SECONDS = 10.0


def settle(run: RunDir) -> str | None:
    """Return the job id of the run's latest submission; if that was interrupted, look for the job in the queue.

    None: nothing was ever submitted, or Slurm refused or never received it.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
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
    """Look for an intent's job in the queue while it may still appear there; `asked` is the time of the last sbatch."""
    # Another node's clock may be ahead: a time in the future counts as now.
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
    """Record the outcome of an intent; that of a job array once in the sweep's record, for all of its runs."""
    told = {**event, "token": intent["token"]}
    if "sweep" in intent:
        events.append(sweep_events_file(run.path.parent, intent["sweep"]), told)
    else:
        run.append_submission({**told, "job_id": _task(told["job_id"], intent)} if "job_id" in told else told)


def _task(job_id: str, intent: dict[str, Any]) -> str:
    """Return the id of the run's array task, or the job id if the job is no array."""
    index = intent.get("array_index")
    return job_id if index is None else f"{job_id}_{index}"
