"""Errors of user input (what was received, the rule it breaks, a remedy) and of failed jobs and checks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from truba_runner.language import _, counted

_LISTED = 12


@dataclass(frozen=True)
class Problem:
    """A broken rule: the input received, the rule, and a remedy."""

    received: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        """Return the problem as one paragraph."""
        return f"{self.received}: {self.rule} {self.remedy}"


class Refused(Exception):
    """The user's input is refused; `problems` has every broken rule. Exit status 2."""

    def __init__(self, *problems: Problem) -> None:
        """Take at least one problem."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Failed(Exception):
    """A job or a check failed, although the command line was correct. Exit status 1."""

    def __init__(self, message: str, /, **values: object) -> None:
        """Translate the message and fill in its `{placeholders}`, as `language._` does."""
        super().__init__(_(message, **values))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a sentence with the valid names similar to `name`; if there are none, with all, at most a dozen."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.51)
    if close:
        return _("Did you mean {names}?", names=_(" or ").join(close))
    if not names:
        return _("There are none.")
    return _("There are: {names}.", names=listed(names))


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """Return the names joined by commas; after the first `most`, only the number of the others."""
    left = len(names) - most
    more = " " + counted("and {count} more", "and {count} more", left) if left > 0 else ""
    return ", ".join(names[:most]) + more
