"""Report numbers below their least value, and names that are no valid choice. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from truba_runner.errors import Problem, nearest
from truba_runner.language import _


def at_least(key: str, value: int | None, least: int, remedy: str = "") -> Iterator[Problem]:
    """Report a value below `least`; None is valid. `remedy`: what to do, if not to set a value that is large enough."""
    if value is not None and value < least:
        enough = _("Set {key}={value}.", key=key, value=max(least, 1))
        yield Problem(f"{key}={value}", _("it must be {least} or more.", least=least), remedy or enough)


def positive(key: str, value: float | None) -> Iterator[Problem]:
    """Report a value that is zero, negative, infinite or no number; None is valid."""
    if value is not None and not 0 < value < math.inf:
        yield Problem(f"{key}={value:g}", _("it must be positive and finite."), _("Leave it out."))


def one_of(key: str, value: str, valid: Collection[str]) -> Iterator[Problem]:
    """Report a value that is not among the valid ones; an empty valid one is not suggested."""
    if value not in valid:
        yield Problem(f"{key}={value}", _("there is no such choice."), nearest(value, filter(None, valid)))
