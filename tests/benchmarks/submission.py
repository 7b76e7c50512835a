"""How long the command line takes: its start, one submission, and sweeps, over plain sbatch and over Hydra's launcher.

    slurm/testcluster/run --user ayse .venv/bin/python tests/benchmarks/submission.py [--rounds 5] [--runs 10 100 1000]

Every row's candidates take turns in one run; the table gives median, spread, and ratio to the first. Between two
measurements the queue is emptied. Hydra's launcher returns when the last job has ended, which takes minutes for a
thousand: it is measured with as many runs as --peer says.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    options.add_argument("--runs", type=int, nargs="*", default=[10, 100, 1000], help="sizes of the sweeps")
    options.add_argument("--peer", type=int, nargs="*", default=[10, 100], help="sizes for Hydra's launcher, one round")
    options.add_argument("--files", type=int, default=2, help="runs that are trained to count their files")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ["TRUBA_SCRATCH"] + "/" + os.environ["USER"]) as folder:
        bench = Bench(Path(folder))
        compare("start of a command", given.rounds, {
            "python -c pass": bench.command([sys.executable, "-c", "pass"]),
            "truba status": bench.command([*TRUBA, "status"]),
            "truba logs --help": bench.command([*TRUBA, "logs", "--help"]),
        })  # fmt: skip
        compare("one submission", given.rounds, {
            "sbatch": bench.sbatch(array=0),
            "truba_runner": bench.truba(0),
        })  # fmt: skip
        for runs in given.runs:
            compare(f"{runs} runs", given.rounds, {
                "sbatch --array": bench.sbatch(array=runs),
                "truba_runner -m": bench.truba(runs),
                "the same again, when all were cancelled": bench.truba_again(),
            })  # fmt: skip
        for runs in given.peer:
            compare(f"{runs} runs, until the command returns", 1, {
                "truba_runner -m": bench.truba(runs),
                "hydra-submitit-launcher": bench.hydra_launcher(runs),
            })  # fmt: skip
        if given.files:
            bench.files_of_finished_runs(given.files)


class Bench:
    """The candidates, each a function that does its thing once."""

    def __init__(self, folder: Path) -> None:
        """`folder` is on scratch."""
        self.folder = folder
        (folder / "jobs").mkdir()
        (folder / "jobs" / "failing.py").write_text(FAILING_JOB)
        (folder / "app.py").write_text(HYDRA_APP)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        self.seeds = itertools.count()
        self.last: list[str] = []

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

    def truba(self, runs: int) -> Callable[[], None]:
        """New runs each time: the same ones would be pointed at. 0: one run, and no sweep."""

        def run() -> None:
            first = next(self.seeds) * 10_000
            seeds = f"range({first},{first + runs})" if runs else str(first)
            overrides = ["+experiment=mnist", "job.module=failing", "data.name=digits", f"train.seed={seeds}"]
            self.last = [*TRUBA, *(["-m"] if runs else []), *overrides, f"cluster.runs_folder={self.folder}/runs"]
            self.command(self.last)()
            left = processes_left()
            if left:
                raise SystemExit(f"left on the login node: {left}")

        return run

    def truba_again(self) -> Callable[[], None]:
        """The last command once more."""
        return lambda: self.command(self.last)()

    def hydra_launcher(self, runs: int) -> Callable[[], None]:
        """The peer: the same number of runs of an app that does nothing."""
        sweep = [f"+seed=range({runs})", f"hydra.sweep.dir={self.folder}/multirun"]
        return self.command([sys.executable, str(self.folder / "app.py"), *LAUNCHER, *sweep])

    def files_of_finished_runs(self, runs: int) -> None:
        """Trains MNIST's network in a sweep, and counts what each run leaves."""
        overrides = ["+experiment=mnist", "data.name=digits", "train.epochs=3", f"train.seed=range({runs})"]
        own = [f"cluster.runs_folder={self.folder}/trained", "launcher.wait=true"]
        self.command([*TRUBA, "-m", *overrides, *own])()
        for run in sorted((self.folder / "trained").glob("mnist-*")):
            kinds = Counter("folders" if path.is_dir() else "files" for path in run.rglob("*"))
            print(f"{run.name}: {kinds['files']} files in {kinds['folders']} folders beside its own")
        shared = sum(path.is_file() for path in (self.folder / "trained" / ".sweeps").rglob("*"))
        print(f"shared by all runs of the sweep: {shared} files")


def processes_left() -> Sequence[str]:
    """What still runs of this program, but for the jobs themselves: the nodes of the test cluster are this machine."""
    shown = subprocess.run(["ps", "-u", os.environ["USER"], "-o", "args="], capture_output=True, text=True).stdout
    ours = (line for line in shown.splitlines() if "truba_runner" in line and "submission.py" not in line)
    return [line for line in ours if "truba_runner.sweeps.task" not in line and "truba_runner.worker" not in line]


def empty_the_queue() -> None:
    """Cancels what was submitted, and waits until Slurm has done with it."""
    subprocess.run(["scancel", "--user", os.environ["USER"]], check=True)
    while subprocess.run(["squeue", "-h", "-u", os.environ["USER"]], capture_output=True).stdout:
        time.sleep(0.2)
    time.sleep(1)


def compare(title: str, rounds: int, candidates: Mapping[str, Callable[[], None]]) -> None:
    """Lets the candidates take turns; the first is the yardstick. CPU seconds are the command's own."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            before, started = cpu_seconds(), time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(cpu_seconds() - before)
            empty_the_queue()
    yardstick = statistics.median(seconds[next(iter(candidates))])
    print(f"\n{title}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        spread = f"({min(taken):.3f}–{max(taken):.3f})"
        own = statistics.median(cpu[name])
        print(f"  {name:45} {median:7.3f} s  {spread:17} × {median / yardstick:<7.2f} CPU {own:.3f} s", flush=True)


def cpu_seconds() -> float:
    """Spent by all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
