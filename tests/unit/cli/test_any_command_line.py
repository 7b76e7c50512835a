"""No command line ends in a traceback, and none writes that says it will not: thousands, over every key of the schema.

The lines and their values are in `any_line.py`, a composing that is quick enough for them in `quick_hydra.py`. Each of
a few processes takes its share of the lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

from any_line import lines
from in_process import truba
from quick_hydra import quick_hydra, small_site

COUNT, PROCESSES = int(os.environ.get("TRUBA_TEST_LINES", "3000")), 2


def share(folder: Path, first: int) -> tuple[list[str], dict[int, int]]:
    """Return what went wrong with every line of a share, and how often each exit status came."""
    wrong: list[str] = []
    counts = {0: 0, 1: 0, 2: 0}
    # Without Slurm on the PATH: what is asked of it is told to be unknown, with exit status 1.
    folders = {name: str(folder / name) for name in ("XDG_STATE_HOME", "TRUBA_SCRATCH", "PATH")}
    environment = {**os.environ, **folders, "TRUBA_CLUSTER": "local"}
    with quick_hydra(folder / "conf"):
        for line in islice(lines(COUNT, seed=14), first, None, PROCESSES):
            try:
                done = truba(*line, cwd=folder / "work", environment=environment)
            except Exception as error:
                wrong.append(f"{line}: {type(error).__name__}: {error}")
                continue
            counts[done.returncode] += 1
            told = done.stderr.strip()
            if (done.returncode and not told) or "Traceback" in told or (done.returncode == 1 and "Slurm" not in told):
                wrong.append(f"{line}: {done.returncode} {told}")
    return wrong, counts


def test_whatever_is_typed_is_planned_or_refused_in_words(tmp_path: Path) -> None:
    small_site(tmp_path / "conf")
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    commands = [[sys.executable, __file__, str(tmp_path), str(first)] for first in range(PROCESSES)]
    shares = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) for argv in commands]
    found = [json.loads(one.communicate()[0]) for one in shares]
    assert [line for wrong, _counts in found for line in wrong] == []
    assert list((tmp_path / "work").iterdir()) == []
    counts = {status: sum(one[1][status] for one in found) for status in "012"}
    # That lines are planned too, and not all refused at the first gate.
    assert sum(counts.values()) == COUNT and counts["0"] > COUNT / 10 and counts["2"] > COUNT / 10, counts


if __name__ == "__main__":
    print(json.dumps(share(Path(sys.argv[1]), int(sys.argv[2]))))
