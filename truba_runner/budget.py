"""Core-hours and GPU-hours: what an account may use over time, what is left of it, and what a submission may take."""

from __future__ import annotations

from collections.abc import Iterator

from truba_runner import slurm_facts
from truba_runner.language import _, marked
from truba_runner.request import Request
from truba_runner.scheduler import SlurmError
from truba_runner.slurm_facts import Limit

# Slurm's name for a limit on what is used over time, in minutes.
_OVER_TIME = "GrpTRESMins"
_WORDS = {"cpu": marked("core-hours"), "gres/gpu": marked("GPU-hours")}


def limits(account: str) -> list[Limit]:
    """The limits over time that are set on an account, in minutes; none where Slurm does not tell."""
    try:
        return [one for one in slurm_facts.limits(account) if one.name == _OVER_TIME and one.resource in _WORDS]
    except SlurmError:
        return []


def unit(limit: Limit) -> str:
    """What a limit counts."""
    return _(_WORDS[limit.resource])


def warnings(request: Request, jobs: int) -> Iterator[str]:
    """What so many jobs may take that is no longer there, if they need all of their time."""
    asked = {"cpu": request.total_cores, "gres/gpu": request.nodes * request.gpus}
    for one in limits(request.account):
        wanted = asked[one.resource] * request.time_minutes * jobs
        left = one.left
        if left is not None and wanted > left:
            yield _(
                "up to {wanted:,.0f} {unit} may be used, and of those of the account {account} {left:,.0f} are left; "
                "what is more waits with AssocGrpCPUMinutesLimit (truba usage)",
                wanted=wanted / 60,
                unit=unit(one),
                account=one.holder,
                left=max(0.0, left / 60),
            )
