"""What this program writes itself counts as a record."""

from __future__ import annotations

import pytest

from truba_runner.runs import events, record_shapes


@pytest.mark.parametrize("job_id", ["", "7", "7_3", "7_3.12", "local-20261130-1200-77", "local-20261130-1200-77.2"])
def test_every_number_that_a_start_has_is_one(job_id: str) -> None:
    assert not events.wrong_event({"event": "leased", "job_id": job_id})
    assert not record_shapes.wrong_progress({"job_id": job_id})


@pytest.mark.parametrize("job_id", ["7;rm", "7_", "-7", "7\n", "--user=ayse", "7_3.", " 7", "7.batch"])
def test_what_else_would_reach_slurms_commands_is_none(job_id: str) -> None:
    assert events.wrong_event({"event": "submitted", "job_id": job_id})
