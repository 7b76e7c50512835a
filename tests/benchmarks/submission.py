"""How long the command line takes: its start, one submission, and a sweep, over plain sbatch and over Hydra's launcher.

    slurm/testcluster/run --user ayse .venv/bin/python tests/benchmarks/submission.py [--rounds 5] [--runs 20]

Every row's candidates take turns in one run; the table gives median, spread, and ratio to the first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRUBA = [sys.executable, "-m", "truba_runner"]
FAILING_JOB = 'raise RuntimeError("only its submission is measured")\n'
HYDRA_APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    pass

main()
"""
LAUNCHER = [
    "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=akya-cuda", "hydra.launcher.gres=gpu:1",
    "hydra.launcher.cpus_per_task=10", "hydra.launcher.timeout_min=5", "hydra.launcher.mem_gb=1",
]  # fmt: skip


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--runs", type=int, default=20, help="runs in the sweep that is measured")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ["TRUBA_SCRATCH"] + "/" + os.environ["USER"]) as folder:
        bench = Bench(Path(folder), given.runs)
        compare("start of a command", given.rounds, {
            "python -c pass": bench.command([sys.executable, "-c", "pass"]),
            "truba status": bench.command([*TRUBA, "status"]),
            "truba logs --help": bench.command([*TRUBA, "logs", "--help"]),
        })  # fmt: skip
        compare("one submission", given.rounds, {
            "sbatch": bench.sbatch(array=0),
            "truba_runner": bench.truba([]),
        })  # fmt: skip
        compare(f"{given.runs} runs", given.rounds, {
            "sbatch --array": bench.sbatch(array=given.runs),
            f"sbatch, {given.runs} times": bench.many_sbatch(given.runs),
            "truba_runner -m": bench.truba(["-m"]),
        })  # fmt: skip
        compare(f"{given.runs} runs, hydra-submitit-launcher", 1, {
            "truba_runner -m": bench.truba(["-m"]),
            "hydra-submitit-launcher (until it returns)": bench.hydra_launcher(),
        })  # fmt: skip


class Bench:
    """The candidates, each a function that does its thing once."""

    def __init__(self, folder: Path, runs: int) -> None:
        """`folder` is on scratch; `runs` is the size of a sweep."""
        self.folder, self.runs = folder, runs
        (folder / "jobs").mkdir()
        (folder / "jobs" / "failing.py").write_text(FAILING_JOB)
        (folder / "app.py").write_text(HYDRA_APP)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        self.seeds = itertools.count()

    def command(self, argv: list[str], text: str | None = None) -> Callable[[], None]:
        """Runs `argv`."""

        def run() -> None:
            done = subprocess.run(
                argv, input=text, cwd=self.folder, env=self.environment, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{argv}: {done.stderr}{done.stdout}")

        return run

    def sbatch(self, array: int) -> Callable[[], None]:
        """What a user without this project types."""
        flags = ["-p", "akya-cuda", "--gres=gpu:1", "-c", "10", "-t", "5", f"--chdir={self.folder}"]
        flags += [f"--array=0-{array - 1}"] if array else []
        return self.command(["sbatch", *flags, f"--output={self.folder}/%j.log"], "#!/bin/bash\ntrue\n")

    def many_sbatch(self, count: int) -> Callable[[], None]:
        """One sbatch a run, as a shell loop does."""
        one = self.sbatch(array=0)
        return lambda: [one() for _ in range(count)][0]

    def truba(self, mode: list[str]) -> Callable[[], None]:
        """New runs each time: the same ones would be pointed at."""

        def run() -> None:
            first = next(self.seeds) * 10_000
            seeds = f"range({first},{first + self.runs})" if mode else str(first)
            overrides = ["+experiment=mnist", "job.module=failing", "data.name=digits", f"train.seed={seeds}"]
            self.command([*TRUBA, *mode, *overrides, f"cluster.runs_folder={self.folder}/runs"])()

        return run

    def hydra_launcher(self) -> Callable[[], None]:
        """The peer: the same number of runs of an app that does nothing."""
        sweep = [f"+seed=range({self.runs})", f"hydra.sweep.dir={self.folder}/multirun"]
        return self.command([sys.executable, str(self.folder / "app.py"), *LAUNCHER, *sweep])


def compare(title: str, rounds: int, candidates: Mapping[str, Callable[[], None]]) -> None:
    """Lets the candidates take turns; the first is the yardstick."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        subprocess.run(["scancel", "--user", os.environ["USER"]], check=True)
    yardstick = statistics.median(seconds[next(iter(candidates))])
    print(f"\n{title}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(
            f"  {name:45} {median:7.3f} s  ({min(taken):.3f}–{max(taken):.3f})  × {median / yardstick:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
