"""Parse and format durations in the forms that users and Slurm write."""

from __future__ import annotations

import math
import re

from truba_runner.language import _

_UNITS = {"m": 1, "h": 60, "d": 24 * 60}
# YAML reads an unquoted 1:00:00 as the number 3600, which as minutes would be 60 hours.
_LARGEST_BARE_MINUTES = 24 * 60
# For the start, reading data, compilation, and the evaluation and plots at the end.
_AROUND_MINUTES = 10
_ROUNDED_TO_MINUTES = 15


def forms() -> str:
    """Return the remedy for a text that is no duration: the valid forms."""
    return _("Write it as {forms}.", forms=_("90 (minutes), 45m, 2h, 3d, 1:30:00 or 1-12:00:00"))


def parse_minutes(text: str) -> int:
    """Return a duration in whole minutes, rounded up.

    Raises:
        ValueError: `text` has none of the forms in `forms`; the message says why.
    """
    text = text.strip()
    if match := re.fullmatch(r"(\d+)([mhd])", text):
        return int(match[1]) * _UNITS[match[2]]
    if re.fullmatch(r"\d+", text):
        if int(text) > _LARGEST_BARE_MINUTES:
            raise ValueError(
                _(
                    "a bare number means minutes and may be at most 1440 (in YAML, write H:MM:SS in quotes, else it "
                    "is read as one number)"
                )
            )
        return int(text)
    if match := re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d{2})(?::(\d{2}))?", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (1 if seconds else 0)
    raise ValueError(_("it is not a valid duration"))


def time_limit(minutes: float) -> int:
    """Return the time limit of a job that trains for so many minutes, rounded up, as no scheduler minds a few more."""
    return math.ceil((_AROUND_MINUTES + minutes) / _ROUNDED_TO_MINUTES) * _ROUNDED_TO_MINUTES


def slurm_time(minutes: int) -> str:
    """Format minutes as `D-HH:MM:SS`, or as `HH:MM:SS` below one day."""
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock
