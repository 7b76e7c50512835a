"""What the processes that train one network agree on, wait for and send each other, in either framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.training.interrupt import Interruption


class Agreement(NamedTuple):
    """What all ranks agreed on, the same on every rank."""

    # Whether any rank was asked to stop.
    stop: bool
    # Whether any rank has a checkpoint due.
    due: bool


class Group:
    """The ranks of a training, seen from one of them; every rank makes the same calls in the same order.

    This class is for a single process. A framework's subclass for several overrides `summed`, `gather` and `part`.
    """

    def __init__(self, interruption: Interruption, rank: int = 0, tasks: int = 1) -> None:
        """`interruption`: this process's signals; `rank`: its number among the `tasks` processes."""
        self.interruption, self.rank, self.tasks = interruption, rank, tasks

    @property
    def together(self) -> bool:
        """Whether there are other ranks."""
        return self.tasks > 1

    def agree(self, due: bool = False) -> Agreement:
        """Wait until all ranks have called this; return whether any was asked to stop, and whether any is `due`.

        Signals that only other ranks have received count as received here too, so that all ranks react alike.
        """
        if not self.together:
            return Agreement(self.interruption.requested, due)
        return self.agreed(self.summed(self.flags(due)))

    def flags(self, due: bool) -> list[int]:
        """Return what `agreed` needs the sums of."""
        return [*(int(number in self.interruption.received) for number in Interruption.signals()), int(due)]

    def agreed(self, totals: Sequence[float]) -> Agreement:
        """Return the agreement from the sums of all ranks' `flags`."""
        *signals, dues = totals
        for number, total in zip_equal(Interruption.signals(), signals):
            if total and number not in self.interruption.received:
                self.interruption.received.append(number)
        return Agreement(any(signals), bool(dues))

    def wait_for_all(self) -> None:
        """Wait until every rank has called this; the others would take a rank that exits earlier for dead."""
        self.summed([0])

    def hold(self) -> None:
        """Hold back signals on all ranks from now on: one that ended a single rank would leave the others behind."""
        self.wait_for_all()
        self.interruption.hold()

    def from_rank_0(self, values: list[int]) -> list[int]:
        """Return rank 0's values; every rank has to pass as many."""
        return self.summed(values if self.rank == 0 else [0] * len(values))

    def check_same(self, digest: str) -> None:
        """Check that all ranks have the same weights, bit for bit; `digest`: the hexadecimal digest of this rank's.

        Raises:
            RuntimeError: the weights differ.
        """
        own = list(bytes.fromhex(digest))
        by_rank = self.summed([byte if rank == self.rank else 0 for rank in range(self.tasks) for byte in own])
        if by_rank != own * self.tasks:
            raise RuntimeError(_("the ranks have trained different weights: their results cannot be trusted"))

    def summed(self, values: list[int]) -> list[int]:
        """Return the sum over all ranks of each of the values."""
        return values

    def gather(self, data: bytes) -> list[bytes]:
        """Return each rank's `data`, in the order of ranks."""
        return [data]

    def part(self) -> None:
        """End the ranks' work together, all at once: a rank that ended earlier would be taken for lost."""
