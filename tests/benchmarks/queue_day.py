"""When trainings start and end on a loaded cluster: one long job on a fixed partition, a chain of short ones, and auto.

    slurm/testcluster/run --user ayse --cwd $PWD .venv/bin/python tests/benchmarks/queue_day.py [--hours 24] [--seed 1]
    … queue_day.py --loads akya-cuda=0.95 barbun-cuda=0.85 palamut-cuda=0.75 kolyoz-cuda=0.65 --shuffle --out FILE
    python tests/benchmarks/queue_day.py --pool FILE…

A day in which an hour lasts a minute, on the real scheduler: other people's jobs come at random and fill the
partitions; with `--shuffle` the seed says which of them has which load. Every third hour one training of each kind is
submitted, all at the same moment, in an order that rotates. A training needs five hours of one GPU. Jobs only sleep;
limits, requests, requeues and Slurm's estimates are real, and `auto` is asked for as a submission asks for it. A
requeue takes ten seconds there, which in this day are ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truba_runner.code import job_module
from truba_runner.config.composing.compose import composed
from truba_runner.config.schema import Experiment
from truba_runner.submission.automatic import Automatic

HOUR_SECONDS = 60
NEEDED_HOURS, LIMIT_HOURS, SEGMENT_HOURS = 5, 6, 1
# Partition: GPUs, GPUs a node, cores a GPU.
PARTITIONS = {
    "akya-cuda": (16, 4, 10), "barbun-cuda": (4, 2, 20), "palamut-cuda": (16, 8, 16), "kolyoz-cuda": (8, 4, 16),
}  # fmt: skip
FEATURES = {"kolyoz-cuda": ["H100", "H200"]}
# Goes back into the queue until it has run often enough; the time of each start is on record.
CHAIN = """#!/bin/bash
date +%s.%N >> "$1"
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then sleep {seconds}; scontrol requeue $SLURM_JOB_ID; sleep 60; fi
sleep {seconds}
date +%s.%N >> "$1.end"
"""


@dataclass
class Training:
    """One probe: how it was asked for, and its file of starts."""

    kind: str
    number: int
    submitted: float
    starts: Path
    # The partition, and for `auto` what the submission was told of it.
    partition: str
    told: str

    @property
    def waited_hours(self) -> float | None:
        """Until it first started."""
        return self._until(self.starts)

    @property
    def took_hours(self) -> float | None:
        """Until it was done."""
        return self._until(self.starts.with_name(f"{self.starts.name}.end"))

    def _until(self, told: Path) -> float | None:
        if not told.exists():
            return None
        return (float(told.read_text().split()[0]) - self.submitted) / HOUR_SECONDS


def sbatch(partition: str, feature: str, gpus: int, limit_hours: int, *command: str) -> None:
    cores = gpus * PARTITIONS[partition][2]
    argv = ["sbatch", f"--partition={partition}", f"--gres=gpu:{gpus}", f"--cpus-per-task={cores}", "--account=proj1"]
    argv += [f"--constraint={feature}"] if feature else []
    subprocess.run([*argv, f"--time={limit_hours}", "--output=jobs.out", *command], check=True, capture_output=True)


def others(rng: random.Random, loads: Mapping[str, float]) -> Iterator[tuple[float, str, str, int, int, float]]:
    """Other people's jobs: hour, partition, feature, GPUs, limit and need in hours; at first enough for every GPU."""
    lengths, weights = (1, 2, 4, 8, 24), (20, 25, 25, 20, 10)
    mean_hours = sum(length * weight for length, weight in zip(lengths, weights, strict=True)) / sum(weights) * 0.65

    def job(hour: float, partition: str) -> tuple[float, str, str, int, int, float]:
        limit = rng.choices(lengths, weights)[0]
        gpus = rng.choice([1, 1, 2, PARTITIONS[partition][1]])
        feature = rng.choice(FEATURES.get(partition, [""]))
        return hour, partition, feature, gpus, limit, limit * rng.uniform(0.3, 1.0)

    for partition, load in loads.items():
        gpus, per_node, _ = PARTITIONS[partition]
        mean_gpus = (4 + per_node) / 4
        for _ in range(int(gpus / mean_gpus * 1.3)):
            yield job(0.0, partition)
        hour = 0.0
        while hour < 48:
            hour += rng.expovariate(load * gpus / (mean_gpus * mean_hours))
            yield job(hour, partition)


def experiment(partitions: Sequence[str], *overrides: str) -> tuple[Experiment, Path]:
    """The training; the cluster has no other partitions, and all of them take jobs from here."""
    made = composed(["+experiment=mnist", "data.name=digits", "resources.account=proj1", *overrides])
    known = {name: replace(made.cluster.partitions[name], login_nodes=[]) for name in partitions}
    return replace(made, cluster=replace(made.cluster, partitions=known)), job_module.find(made.job.module, Path.cwd())


def train(kind: str, partitions: Sequence[str], folder: Path, number: int) -> Training:
    """Submits one training of a kind."""
    partition, feature, said = "akya-cuda", "", io.StringIO()
    if "auto" in kind:
        limit = LIMIT_HOURS if "long" in kind else SEGMENT_HOURS + 1
        made, job_file = experiment(partitions, f"resources.time={limit}")
        asked = replace(made, resources=replace(made.resources, partition="auto"))
        with contextlib.redirect_stderr(said):
            settled = Automatic().settled(asked, job_file).resources
        partition, feature = settled.partition, settled.constraint
    pieces = NEEDED_HOURS // SEGMENT_HOURS if "chain" in kind else 1
    script = folder / f"{kind.replace(' ', '-')}.sh"
    script.write_text(CHAIN.format(requeues=pieces - 1, seconds=NEEDED_HOURS * HOUR_SECONDS / pieces))
    starts = folder / f"{number}-{script.stem}.starts"
    training = Training(kind, number, time.time(), starts, partition, said.getvalue().strip())
    # A minute more than a piece: it ends by itself, as a run ends on Slurm's signal.
    limit = SEGMENT_HOURS + 1 if pieces > 1 else LIMIT_HOURS
    sbatch(partition, feature, 1, limit, "--requeue", str(script), str(starts))
    return training


def day(hours: int, seed: int, loads: Mapping[str, float], folder: Path) -> list[Training]:
    coming = sorted(others(random.Random(seed), loads))
    kinds = ["long job, akya-cuda", "chain, akya-cuda", "long job, auto", "chain, auto"]
    began, trainings, probed = time.time(), list[Training](), 0
    while (hour := (time.time() - began) / HOUR_SECONDS) < 2 * hours:
        while coming and coming[0][0] <= min(hour, hours):
            _, partition, feature, gpus, limit, need = coming.pop(0)
            sbatch(partition, feature, gpus, limit, "--wrap", f"sleep {need * HOUR_SECONDS:.0f}")
        if probed < hours // 3 and hour >= 1 + 3 * probed:
            order = kinds[probed % 4 :] + kinds[: probed % 4]
            trainings += [train(kind, list(loads), folder, probed) for kind in order]
            probed += 1
        if probed == hours // 3 and all(training.took_hours is not None for training in trainings):
            break
        time.sleep(0.5)
    return trainings


def told(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what became of each kind; and of `auto` by how much it was sooner than the fixed partition, in pairs."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        print(f"{kind:22}", end="")
        for what, key in (("until it starts", "waited"), ("until it is done", "took")):
            found = [row[key] for row in mine if row[key] is not None]
            if found:
                mean, median = statistics.fmean(found), statistics.median(found)
                print(f"  {what}: mean {mean:5.2f} h, median {median:5.2f} h, {len(found)} of {len(mine)}", end="")
        print()
    fixed = {(row["seed"], row["number"], row["kind"]): row for row in rows}
    for kind in (kind for kind in kinds if "auto" in kind):
        pairs = [(row, fixed[row["seed"], row["number"], kind.replace("auto", "akya-cuda")])
                 for row in rows if row["kind"] == kind]  # fmt: skip
        both = [(row["waited"], there["waited"]) for row, there in pairs]
        gains = [fixed_hours - hours for hours, fixed_hours in both if None not in (hours, fixed_hours)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        sooner = statistics.fmean(gains)
        print(f"{kind}: starts {sooner:.2f} h sooner than on akya-cuda (standard error {error:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--loads", nargs="+", default=["akya-cuda=0.75", "barbun-cuda=0.75"], metavar="PARTITION=LOAD",
        help="other people's GPU-hours over what there are",
    )  # fmt: skip
    parser.add_argument("--shuffle", action="store_true", help="the seed says which partition has which of the loads")
    parser.add_argument("--out", type=Path, help="a JSON line for each training")
    parser.add_argument("--pool", type=Path, nargs="+", help="no day: what these files of --out come to together")
    options = parser.parse_args()
    if options.pool:
        told([json.loads(line) for file in options.pool for line in file.read_text().splitlines()])
        return
    loads = {name: float(load) for name, load in (one.split("=") for one in options.loads)}
    if options.shuffle:
        loads = dict(zip(loads, random.Random(options.seed).sample(list(loads.values()), len(loads)), strict=True))
    folder = Path(os.environ["TRUBA_SCRATCH"]) / os.environ["USER"] / "day"
    folder.mkdir()
    os.chdir(folder)
    rows = [
        {"seed": options.seed, "number": one.number, "kind": one.kind, "partition": one.partition, "told": one.told,
         "waited": one.waited_hours, "took": one.took_hours, "loads": loads}
        for one in day(options.hours, options.seed, loads, folder)
    ]  # fmt: skip
    if options.out:
        options.out.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told(rows)


if __name__ == "__main__":
    main()
