"""When trainings start and end on a loaded cluster: one long job on a fixed partition, a chain of short ones, and auto.

    slurm/testcluster/run --user ayse --cwd $PWD .venv/bin/python tests/benchmarks/queue_day.py [--hours 24] [--seed 1]

A day in which an hour lasts a minute, on the real scheduler: other people's jobs come at random and fill both
partitions; every third hour one training of each kind is submitted, all at the same moment, in an order that rotates. A
training needs five hours of one GPU. Jobs only sleep; limits, requests, requeues and Slurm's estimates are real, and
`auto` is asked for as a submission asks for it. A requeue takes ten seconds there, which in this day are ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from truba_runner import job_module
from truba_runner.composed import composed
from truba_runner.config import Experiment
from truba_runner.queue.automatic import Automatic

HOUR_SECONDS = 60
NEEDED_HOURS, LIMIT_HOURS, SEGMENT_HOURS = 5, 6, 1
# Partition: GPUs, GPUs a node, cores a GPU.
PARTITIONS = {"akya-cuda": (16, 4, 10), "barbun-cuda": (4, 2, 20)}
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
    submitted: float
    starts: Path

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


def sbatch(partition: str, gpus: int, limit_hours: int, *command: str) -> None:
    cores = gpus * PARTITIONS[partition][2]
    argv = ["sbatch", f"--partition={partition}", f"--gres=gpu:{gpus}", f"--cpus-per-task={cores}", "--account=proj1"]
    subprocess.run([*argv, f"--time={limit_hours}", "--output=jobs.out", *command], check=True, capture_output=True)


def others(rng: random.Random, load: float) -> Iterator[tuple[float, str, int, int, float]]:
    """Other people's jobs: hour, partition, GPUs, limit and need in hours; at first enough to fill every GPU."""
    lengths, weights = (1, 2, 4, 8, 24), (20, 25, 25, 20, 10)
    mean_hours = sum(length * weight for length, weight in zip(lengths, weights, strict=True)) / sum(weights) * 0.65

    def job(hour: float, partition: str) -> tuple[float, str, int, int, float]:
        limit = rng.choices(lengths, weights)[0]
        gpus = rng.choice([1, 1, 2, PARTITIONS[partition][1]])
        return hour, partition, gpus, limit, limit * rng.uniform(0.3, 1.0)

    for partition, (gpus, per_node, _) in PARTITIONS.items():
        mean_gpus = (4 + per_node) / 4
        for _ in range(int(gpus / mean_gpus * 1.3)):
            yield job(0.0, partition)
        hour = 0.0
        while hour < 48:
            hour += rng.expovariate(load * gpus / (mean_gpus * mean_hours))
            yield job(hour, partition)


def experiment(*overrides: str) -> tuple[Experiment, Path]:
    made = composed(["+experiment=mnist", "data.name=digits", "resources.account=proj1", *overrides])
    return made, job_module.find(made.job.module, Path.cwd())


def train(kind: str, folder: Path, number: int) -> Training:
    """Submits one training of a kind."""
    partition = "akya-cuda"
    if "auto" in kind:
        made, job_file = experiment(f"resources.time={LIMIT_HOURS}")
        asked = replace(made, resources=replace(made.resources, partition="auto"))
        with contextlib.redirect_stderr(io.StringIO()):
            partition = Automatic().settled(asked, job_file).resources.partition
    pieces = NEEDED_HOURS // SEGMENT_HOURS if "chain" in kind else 1
    script = folder / f"{kind.replace(' ', '-')}.sh"
    script.write_text(CHAIN.format(requeues=pieces - 1, seconds=NEEDED_HOURS * HOUR_SECONDS / pieces))
    starts = folder / f"{number}-{script.stem}.starts"
    training = Training(kind, time.time(), starts)
    # A minute more than a piece: it ends by itself, as a run ends on Slurm's signal.
    sbatch(partition, 1, SEGMENT_HOURS + 1 if pieces > 1 else LIMIT_HOURS, "--requeue", str(script), str(starts))
    return training


def day(hours: int, seed: int, load: float, folder: Path) -> list[Training]:
    coming = sorted(others(random.Random(seed), load))
    kinds = ["long job, akya-cuda", "chain, akya-cuda", "long job, auto", "chain, auto"]
    began, trainings, probed = time.time(), list[Training](), 0
    while (hour := (time.time() - began) / HOUR_SECONDS) < 2 * hours:
        while coming and coming[0][0] <= min(hour, hours):
            _, partition, gpus, limit, need = coming.pop(0)
            sbatch(partition, gpus, limit, "--wrap", f"sleep {need * HOUR_SECONDS:.0f}")
        if probed < hours // 3 and hour >= 1 + 3 * probed:
            order = kinds[probed % 4 :] + kinds[: probed % 4]
            trainings += [train(kind, folder, probed) for kind in order]
            probed += 1
        if probed == hours // 3 and all(training.took_hours is not None for training in trainings):
            break
        time.sleep(0.5)
    return trainings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.75, help="other people's GPU-hours over what there are")
    options = parser.parse_args()
    folder = Path(os.environ["TRUBA_SCRATCH"]) / os.environ["USER"] / "day"
    folder.mkdir()
    os.chdir(folder)
    trainings = day(options.hours, options.seed, options.load, folder)
    for kind in dict.fromkeys(training.kind for training in trainings):
        mine = [training for training in trainings if training.kind == kind]
        waited = [hours for training in mine if (hours := training.waited_hours) is not None]
        took = [hours for training in mine if (hours := training.took_hours) is not None]
        print(f"{kind:22}", end="")
        for what, found in (("until it starts", waited), ("until it is done", took)):
            if found:
                mean, median = statistics.fmean(found), statistics.median(found)
                print(f"  {what}: mean {mean:5.2f} h, median {median:5.2f} h, {len(found)} of {len(mine)}", end="")
        print()


if __name__ == "__main__":
    main()
