"""What a whole test run says of itself; here, where pytest finds it also when other processes run the tests."""

from __future__ import annotations

import os

import pytest

# Tests read what the program says in English, whoever runs them; their processes inherit it.
os.environ["TRUBA_LANG"] = "en"
# torch's threads wait for each other asleep: spinning, they take the cores of what runs beside them, and thrice the time.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests had to do without Slurm, and why: a green run must not hide it."""
    left_out = [
        report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", [])
        if report.nodeid.startswith("tests/slurm/") and isinstance(report.longrepr, tuple)
    ]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} Slurm tests were left out: {left_out[0]}", yellow=True)
