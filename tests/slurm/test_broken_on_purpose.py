"""Runs that are broken off again and again, by kills at random moments and by the drill, end as if nothing had been."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from cluster import Cluster
from slow_run import SETTINGS, SLOW_JOB, Run
from truba import Truba

Drilled = Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def drill(cluster: Cluster) -> Iterator[Drilled]:
    """The drill, on its way while other runs are killed: all of them wait for Slurm to requeue them."""
    truba = Truba(cluster, "drill")
    truba.write("jobs/slow.py", SLOW_JOB)
    with ThreadPoolExecutor(1) as apart:
        arguments = ("drill", "+experiment=mnist", *SETTINGS, truba.runs_folder(), "--json")
        yield apart.submit(truba, *arguments, timeout=600)


def kill_seven_times(run: Run, seed: int) -> None:
    moments = random.Random(seed)
    for start in range(1, 8):
        run.wait_for_step(start)
        assert not (run.path / "result.json").exists(), f"the run was over after {start - 1} kills"
        time.sleep(moments.uniform(0, 0.4))  # The moment is the test's subject.
        run.kill()


@pytest.mark.slow
def test_kills_at_twenty_one_random_moments(truba: Truba, drill: Drilled) -> None:
    # Saved after every step: half of the time a kill finds a save under way. Slurm lets a requeued job wait for ten
    # seconds, so three runs are killed side by side.
    settings = ["train.epochs=16", "checkpoint.every_steps=1"]
    name = truba.project.name
    whole, *runs = (Run(Truba(truba.cluster, f"{name}-{number}"), *settings) for number in range(4))
    with ThreadPoolExecutor(len(runs)) as apart:
        list(apart.map(kill_seven_times, runs, range(20, 20 + len(runs))))
    expected = whole.finish()
    for run in runs:
        result = run.finish()
        assert result["restarts"] == 7
        assert result["weights_sha256"] == expected["weights_sha256"] and result["metrics"] == expected["metrics"]
        assert run.history() == whole.history()


def test_the_drill(drill: Drilled) -> None:
    done = drill.result()
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["same_weights"] and report["same_history"] and (report["restarts"], report["requeues"]) == (2, 1)
