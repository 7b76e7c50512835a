from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truba_runner.config.durations import parse_minutes, slurm_time


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("45m", 45), ("2h", 120), ("3d", 4320), ("1:30:00", 90), ("1-12:00:00", 2160), ("0:00:30", 1),
     ("02:30", 150), (" 2h ", 120)],
)  # fmt: skip
def test_forms(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "2 hours", "-5", "1.5h", "1-2", "h", "1441"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_minutes(text)


@given(st.integers(min_value=1, max_value=100_000))
def test_slurms_own_notation_reads_back(minutes: int) -> None:
    assert parse_minutes(slurm_time(minutes)) == minutes
