"""Outcome of a run after a command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(str, Enum):
    """What a command did about a run."""

    SUBMITTED = "submitted"
    # It was in the queue or training already, or had its result.
    RUNNING = "running"
    FINISHED = "finished"
    # It was trained here, with or without success.
    TRAINED = "trained"
    FAILED = "failed"
    # The command was stopped before it came to this run.
    LEFT = "left"
    DRY_RUN = "dry_run"


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run."""

    run_id: str
    run_dir: str
    action: Action
    job_id: str = ""
    # Whether the command received a signal to end during this run.
    stopped: bool = False
    # Why a search has not finished.
    why: str = ""
