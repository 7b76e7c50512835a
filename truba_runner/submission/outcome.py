"""What became of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What became of one run. `action` is submitted, running, finished, trained, failed, left or dry_run.

    `stopped`: the command was told to end meanwhile. What it then did not come to is left.
    """

    run_id: str
    run_dir: str
    action: str
    job_id: str = ""
    stopped: bool = False
    # Of a search that is not over.
    why: str = ""
