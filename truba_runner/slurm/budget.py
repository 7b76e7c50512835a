"""Compare the core-hours and GPU-hours that an account has left with those that submissions may use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from truba_runner.language import _, marked
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import Limit
from truba_runner.slurm.request import Request

# Slurm's name for a limit on use accumulated over time, in minutes.
_OVER_TIME = "GrpTRESMins"
WORDS = {"cpu": marked("core-hours"), "gres/gpu": marked("GPU-hours")}


def limits(account: str) -> list[Limit]:
    """Return an account's limits on cores and GPUs over time, in minutes; empty if Slurm does not report them."""
    try:
        return [one for one in queries.limits(account) if one.name == _OVER_TIME and one.resource in WORDS]
    except SlurmError:
        return []


def unit(limit: Limit) -> str:
    """Return the name of the unit that a limit counts, for the user."""
    return _(WORDS[limit.resource])


@dataclass(frozen=True)
class Asked:
    """The most that a submission may use: a number of jobs, or of chains of jobs, and the minutes of each."""

    request: Request
    jobs: int
    minutes: int

    def of(self, resource: str) -> int:
        """Return the core-minutes or GPU-minutes."""
        amount = self.request.total_cores if resource == "cpu" else self.request.nodes * self.request.gpus
        return amount * self.jobs * self.minutes


def warnings(asked: Sequence[Asked]) -> Iterator[str]:
    """Yield a warning for each limit that these submissions exceed together if they need all of their time."""
    accounts = dict.fromkeys(one.request.account for one in asked)
    for one in (limit for account in accounts for limit in limits(account)):
        account = one.holder.partition("/")[0]
        wanted = sum(other.of(one.resource) for other in asked if other.request.account == account)
        left = one.left
        if left is not None and wanted > left:
            yield _(
                "this submission may use up to {wanted:,.0f} {unit}, but the account {account} has only {left:,.0f} "
                "left; jobs beyond that wait with AssocGrpCPUMinutesLimit (truba usage)",
                wanted=wanted / 60,
                unit=unit(one),
                account=one.holder,
                left=max(0.0, left / 60),
            )
