"""List every job state of Slurm 22.05 to 26.05: whether the job is live, whether it is held, and why.

The names are those of https://slurm.schedmd.com/job_state_codes.html, including flags that squeue does not print today.
A flag hides the state that it is set on: RESV_DEL_HOLD is a pending job.
"""

from __future__ import annotations

from dataclasses import dataclass

from truba_runner.language import _, marked


@dataclass(frozen=True)
class JobState:
    """Meaning of one of Slurm's job states. `why` is one line in English; empty if the state's name says it all."""

    live: bool
    held: bool = False
    why: str = ""

    def said(self) -> str:
        """Return `why` in the user's language."""
        return _(self.why) if self.why else ""


def _live(why: str = "") -> JobState:
    return JobState(live=True, why=why)


def _held(why: str) -> JobState:
    return JobState(live=True, held=True, why=why)


def _ended(why: str = "") -> JobState:
    return JobState(live=False, why=why)


STATES = {
    "PENDING": _live(),
    "RUNNING": _live(),
    "SUSPENDED": _live(marked("Slurm has stopped it for a while")),
    "COMPLETED": _ended(),
    "CANCELLED": _ended(marked("cancelled; the same command goes on")),
    "FAILED": _ended(),
    "TIMEOUT": _ended(marked("its time was up before it had saved; the same command goes on")),
    "NODE_FAIL": _ended(marked("its node failed; the same command goes on")),
    "PREEMPTED": _ended(marked("a job of higher priority needed its nodes; the same command goes on")),
    "BOOT_FAIL": _ended(marked("its node could not be started; the same command goes on")),
    "DEADLINE": _ended(marked("it had not ended by its deadline; the same command goes on")),
    "OUT_OF_MEMORY": _ended(
        marked("it took more memory than it had; with more of it (resources.memory_gb) the same command goes on")
    ),
    # -- flags -------------------------------------------------------------------------------------------------
    "COMPLETING": _live(),
    "CONFIGURING": _live(marked("its nodes are made ready")),
    "EXPEDITING": _live(marked("Slurm starts it again before others")),
    "LAUNCH_FAILED": _live(marked("its node could not start it")),
    "POWER_UP_NODE": _live(marked("its nodes are made ready")),
    "RECONFIG_FAIL": _live(marked("its node could not be made ready")),
    "REQUEUED": _live(marked("on its way back into the queue")),
    "REQUEUE_FED": _live(marked("on its way back into the queue")),
    "REQUEUE_HOLD": _held(marked("it went back into the queue and is held there; truba why tells more")),
    "RESIZING": _live(),
    "RESV_DEL_HOLD": _held(marked("held, as its reservation was deleted; truba why tells how it is let go")),
    # Another cluster of the federation has the job, so this one's Slurm no longer handles it.
    "REVOKED": _ended(marked("another cluster of the federation has taken it over")),
    "SIGNALING": _live(),
    "SPECIAL_EXIT": _held(marked("it went back into the queue and is held there; truba why tells more")),
    "STAGE_OUT": _live(),
    "STOPPED": _live(marked("Slurm has stopped it for a while")),
    "UPDATE_DB": _live(),
}
# If an unknown state of a later Slurm counted as ended, a second job would be submitted for the run.
_UNKNOWN = _live(marked("Slurm's word for its state is not in this program's table, so it counts as in the queue"))


def meaning_of(word: str) -> JobState:
    """Return the meaning of Slurm's name for a job state; an unknown state counts as live."""
    return STATES.get(word, _UNKNOWN)
