"""What a user can do wrong, told as what was received, which rule it breaks and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from truba_runner.language import _, counted

_LISTED = 12


@dataclass(frozen=True)
class Problem:
    """One broken rule."""

    received: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        """One paragraph."""
        return f"{self.received}: {self.rule} {self.remedy}"


class Refused(Exception):
    """The user's input cannot be carried out; every broken rule is in `problems`. Exit status 2."""

    def __init__(self, *problems: Problem) -> None:
        """Takes at least one problem."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Failed(Exception):
    """A job or a check failed through no fault of the command line's. Exit status 1."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence with the valid names: those near to `name`, or where none is near all of them, up to a dozen."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.51)
    if close:
        return _("Did you mean {names}?", names=_(" or ").join(close))
    if not names:
        return _("There are none.")
    return _("There are: {names}.", names=listed(names))


def listed(names: Sequence[str]) -> str:
    """The names, or of many the first dozen."""
    left = len(names) - _LISTED
    more = " " + counted("and {count} more", "and {count} more", left) if left > 0 else ""
    return ", ".join(names[:_LISTED]) + more
