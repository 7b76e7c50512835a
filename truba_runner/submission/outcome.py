"""Outcome of a run after a command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run. `action` is submitted, running, finished, trained, failed, left or dry_run.

    `stopped`: the command received a signal to end during this run; the runs that it did not reach are `left`.
    """

    run_id: str
    run_dir: str
    action: str
    job_id: str = ""
    stopped: bool = False
    # Why a search has not finished.
    why: str = ""
