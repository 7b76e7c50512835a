"""The table of docs/slurm.md and its Turkish page: how many tests of each file pass on each version of Slurm.

`TRUBA_SLURM_TABLE=1 TRUBA_TESTCLUSTER_SLURM=24.11 tests/in_memory -q tests/slurm/FILE…` writes that version's cells of
these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

VERSIONS = ("22.05", "24.11", "26.05")
DOCS = Path(__file__).resolve().parents[1] / "docs"
# The first cell of the table's head on each page.
HEADS = {"slurm.md": "tests", "slurm.tr.md": "sınamalar"}


def wanted() -> bool:
    return os.environ.get("TRUBA_SLURM_TABLE") == "1"


def write(reports: Iterable[pytest.TestReport]) -> None:
    """Write the cells of the files in which tests ran."""
    version = os.environ.get("TRUBA_TESTCLUSTER_SLURM", VERSIONS[0])
    passed: dict[str, list[bool]] = {}
    for report in reports:
        file = Path(report.nodeid.partition("::")[0])
        # A test that fails in its set-up has no call.
        if file.parts[:2] == ("tests", "slurm") and (report.when == "call" or report.failed):
            passed.setdefault(file.name, []).append(report.passed)
    counts = {file: f"{sum(outcomes)}/{len(outcomes)}" for file, outcomes in passed.items()}
    for page, head in HEADS.items():
        path = DOCS / page
        path.write_text(updated(path.read_text(), head, version, counts))


def updated(text: str, head: str, version: str, counts: Mapping[str, str]) -> str:
    """Return a page with these cells of its table."""
    start = text.index(f"| {head} | ")
    table, rest = text[start:].split("\n\n", 1)
    top, line, *old = table.splitlines()
    rows = {
        cells[0].strip("`"): cells[1:] for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in old)
    }
    for file, count in counts.items():
        rows.setdefault(file, ["–"] * len(VERSIONS))[VERSIONS.index(version)] = count
    lines = [f"| `{file}` | {' | '.join(cells)} |" for file, cells in sorted(rows.items())]
    return text[:start] + "\n".join([top, line, *lines]) + "\n\n" + rest
