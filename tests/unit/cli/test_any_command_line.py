"""No command line ends in a traceback, and none writes that says it will not: thousands, over every key of the schema.

The lines and their values are in `any_line.py`, a composing that is quick enough for them in `quick_hydra.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from any_line import lines
from in_process import truba
from quick_hydra import quick_hydra, small_site

COUNT = 3000


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Without Slurm on the PATH: what is asked of it is told to be unknown, with exit status 1."""
    (tmp_path / "work").mkdir()
    folders = {name: str(tmp_path / name) for name in ("XDG_STATE_HOME", "TRUBA_SCRATCH", "PATH")}
    return {**os.environ, **folders, "TRUBA_CLUSTER": "local"}


def test_whatever_is_typed_is_planned_or_refused_in_words(tmp_path: Path, environment: dict[str, str]) -> None:
    small_site(tmp_path / "conf")
    wrong: list[str] = []
    counts = {0: 0, 1: 0, 2: 0}
    with quick_hydra(tmp_path / "conf"):
        for line in lines(COUNT, seed=14):
            try:
                done = truba(*line, cwd=tmp_path / "work", environment=environment)
            except Exception as error:
                wrong.append(f"{line}: {type(error).__name__}: {error}")
                continue
            counts[done.returncode] += 1
            told = done.stderr.strip()
            if (done.returncode and not told) or "Traceback" in told or (done.returncode == 1 and "Slurm" not in told):
                wrong.append(f"{line}: {done.returncode} {told}")
    assert wrong == []
    assert list((tmp_path / "work").iterdir()) == []
    # That lines are planned too, and not all refused at the first gate.
    assert counts[0] > COUNT / 10 and counts[2] > COUNT / 10, counts
