"""How much processor time `truba status` takes over many finished runs, and its start, against another build.

    .venv/bin/python tests/benchmarks/status.py --other FOLDER [--runs 1000] [--rounds 5]

FOLDER is a checkout of the other build (`git worktree add FOLDER COMMIT`). Both take turns over the same runs, copies
of the finished one in `tests/unit/runs/earlier_build.tar.xz`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "tests" / "unit" / "runs" / "earlier_build.tar.xz"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--other", type=Path, required=True)
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = copies(Path(folder), given.runs)
        for what, arguments in (
            (f"status of {given.runs} runs", ["--runs", str(runs)]),
            (f"status --json of {given.runs} runs", ["--json", "--runs", str(runs)]),
            ("status of no run", ["--runs", str(Path(folder) / "none")]),
        ):
            other, own = [], []
            for _ in range(given.rounds):
                other.append(cpu_seconds(given.other.resolve(), arguments, Path(folder)))
                own.append(cpu_seconds(ROOT, arguments, Path(folder)))
            ratio = statistics.median(own) / statistics.median(other)
            print(f"{what}: other {spread(other)}, this {spread(own)} CPU seconds, ratio {ratio:.2f}")


def copies(folder: Path, count: int) -> Path:
    """Make a runs folder with `count` copies of a finished run."""
    subprocess.run(["tar", "-xJf", str(ARCHIVE), "--no-same-owner", "-C", str(folder)], check=True)
    (finished,) = (folder / "runs").glob("finished-*")
    made = folder / "many"
    for number in range(count):
        shutil.copytree(finished, made / f"finished-{number:08x}")
    made.chmod(0o700)
    return made


def cpu_seconds(root: Path, arguments: list[str], cwd: Path) -> float:
    """Return the processor time, user and system, of one `truba status` of the build in `root`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "XDG_STATE_HOME": str(cwd / "state"),
        "TRUBA_CLUSTER": "local",
    }
    argv = [sys.executable, "-m", "truba_runner", "status", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(seconds: list[float]) -> str:
    """Return median, least and most."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"


if __name__ == "__main__":
    main()
