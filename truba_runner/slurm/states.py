"""List every job state of Slurm 22.05 to 26.05: whether the job is live, whether it is held, and why.

The names are those of https://slurm.schedmd.com/job_state_codes.html, including flags that squeue does not print today.
A flag hides the state that it is set on: RESV_DEL_HOLD is a pending job.
"""

from __future__ import annotations

from dataclasses import dataclass

from truba_runner.language import _, marked

# Exit statuses of a job that could not enter its environment (environment/shell_lines.py): no `module` on the node, a
# module did not load, no apptainer, a line of the set-up failed, no conda, conda could not activate the environment.
NO_MODULES, NOT_LOADED, NO_APPTAINER, SETUP_FAILED, NO_CONDA, NOT_ACTIVATED = NOT_ENTERED = range(91, 97)
# Such a job's log has a line that begins with this and names the key.
REASON = "environment."


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
    "SUSPENDED": _live(marked("suspended by Slurm")),
    "COMPLETED": _ended(),
    "CANCELLED": _ended(marked("cancelled; the same command resumes it")),
    "FAILED": _ended(),
    "TIMEOUT": _ended(marked("it reached its time limit before it could save; the same command resumes it")),
    "NODE_FAIL": _ended(marked("its node failed; the same command resumes it")),
    "PREEMPTED": _ended(marked("preempted by a job with a higher priority; the same command resumes it")),
    "BOOT_FAIL": _ended(marked("its node could not be booted; the same command resumes it")),
    "DEADLINE": _ended(marked("it did not end before its deadline; the same command resumes it")),
    "OUT_OF_MEMORY": _ended(
        marked(
            "it used more memory than it had asked for; the same command with more memory (resources.memory_gb) "
            "resumes it"
        )
    ),
    # -- flags -------------------------------------------------------------------------------------------------
    "COMPLETING": _live(),
    "CONFIGURING": _live(marked("Slurm is preparing its nodes")),
    "EXPEDITING": _live(marked("Slurm is restarting it ahead of other jobs")),
    "LAUNCH_FAILED": _live(marked("its node could not start the job")),
    "POWER_UP_NODE": _live(marked("Slurm is preparing its nodes")),
    "RECONFIG_FAIL": _live(marked("its node could not be prepared")),
    "REQUEUED": _live(marked("being requeued")),
    "REQUEUE_FED": _live(marked("being requeued")),
    "REQUEUE_HOLD": _held(marked("requeued and on hold; truba why tells more")),
    "RESIZING": _live(),
    "RESV_DEL_HOLD": _held(marked("on hold because its reservation was deleted; truba why shows how to release it")),
    # Another cluster of the federation has the job, so this one's Slurm no longer handles it.
    "REVOKED": _ended(marked("another cluster of the federation has taken over the job")),
    "SIGNALING": _live(),
    "SPECIAL_EXIT": _held(marked("requeued and on hold; truba why tells more")),
    "STAGE_OUT": _live(),
    "STOPPED": _live(marked("suspended by Slurm")),
    "UPDATE_DB": _live(),
}
# If an unknown state of a later Slurm counted as ended, a second job would be submitted for the run.
_UNKNOWN = _live(marked("this program does not know the state that Slurm gives, so the job counts as in the queue"))


def meaning_of(word: str) -> JobState:
    """Return the meaning of Slurm's name for a job state; an unknown state counts as live."""
    return STATES.get(word, _UNKNOWN)
