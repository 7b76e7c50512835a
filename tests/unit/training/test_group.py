"""What the ranks of a training agree on, in whichever framework."""

from __future__ import annotations

import signal

import pytest

from truba_runner.training.interrupt import Interruption
from truba_runner.training.ranks.group import Group

SAME = "00ff10"


class First(Group):
    """The first of two ranks; the second always adds the same numbers."""

    def __init__(self, *others: int) -> None:
        super().__init__(Interruption(), rank=0, tasks=2)
        self.others = others

    def summed(self, values: list[int]) -> list[int]:
        return [own + other for own, other in zip(values, self.others, strict=True)]


def test_a_single_process_agrees_with_itself() -> None:
    group = Group(Interruption())
    assert not group.together and group.agree() == (False, False) and group.agree(due=True) == (False, True)
    group.interruption.received.append(signal.SIGTERM)
    assert group.agree() == (True, False)
    assert group.from_rank_0([3, 4]) == [3, 4] and group.gather(b"mine") == [b"mine"]
    group.check_same(SAME)
    group.hold()
    group.part()


def test_a_signal_to_another_rank_counts_here_too() -> None:
    nothing, last = [0] * len(Interruption.signals()), [*[0] * (len(Interruption.signals()) - 1), 1]
    assert First(*nothing, 1).agree() == (False, True)
    group = First(*last, 0)
    assert group.agree(due=True) == (True, True)
    assert group.interruption.received == Interruption.signals()[-1:]
    group.agree()
    assert group.interruption.received == Interruption.signals()[-1:], "a signal counts once"


def test_ranks_with_other_weights_are_noticed() -> None:
    nothing = [0, 0, 0]
    First(*nothing, 0x00, 0xFF, 0x10).check_same(SAME)
    with pytest.raises(RuntimeError, match="different weights"):
        First(*nothing, 0x00, 0xFF, 0x11).check_same(SAME)
