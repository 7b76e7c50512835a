"""Core-hours and GPU-hours: what an account may use over time, what is left of it, and what a submission may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from truba_runner.language import _, marked
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import Limit
from truba_runner.slurm.request import Request

# Slurm's name for a limit on what is used over time, in minutes.
_OVER_TIME = "GrpTRESMins"
WORDS = {"cpu": marked("core-hours"), "gres/gpu": marked("GPU-hours")}


def limits(account: str) -> list[Limit]:
    """The limits over time that are set on an account, in minutes; none where Slurm does not tell."""
    try:
        return [one for one in queries.limits(account) if one.name == _OVER_TIME and one.resource in WORDS]
    except SlurmError:
        return []


def unit(limit: Limit) -> str:
    """What a limit counts."""
    return _(WORDS[limit.resource])


@dataclass(frozen=True)
class Asked:
    """What a submission may take at the most: so many jobs, or chains of them, each for so many minutes."""

    request: Request
    jobs: int
    minutes: int

    def of(self, resource: str) -> int:
        """Core-minutes or GPU-minutes."""
        amount = self.request.total_cores if resource == "cpu" else self.request.nodes * self.request.gpus
        return amount * self.jobs * self.minutes


def warnings(asked: Sequence[Asked]) -> Iterator[str]:
    """What these submissions may take together that is no longer there, if they need all of their time."""
    accounts = dict.fromkeys(one.request.account for one in asked)
    for one in (limit for account in accounts for limit in limits(account)):
        account = one.holder.partition("/")[0]
        wanted = sum(other.of(one.resource) for other in asked if other.request.account == account)
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
