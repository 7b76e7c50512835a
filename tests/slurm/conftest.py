"""The `cluster` fixture: one real Slurm cluster for the whole test session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, ClusterUnavailable

LEFT_OUT = "no Slurm test cluster: "


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster, shared by all tests. Skips where it can't be had, or fails with TRUBA_REQUIRE_SLURM=1."""
    running, reason = None, ""
    try:
        running = Cluster()
    except ClusterUnavailable as error:
        reason = f"{LEFT_OUT}{error}"
    if running is None:
        if os.environ.get("TRUBA_REQUIRE_SLURM") == "1":
            pytest.fail(f"TRUBA_REQUIRE_SLURM=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    with running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests had to do without Slurm, and why: a green run must not hide it."""
    left_out = [
        report.longrepr[2].partition(LEFT_OUT)[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and LEFT_OUT in report.longrepr[2]
    ]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} Slurm tests were left out: {left_out[0]}", yellow=True)
