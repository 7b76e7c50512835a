"""Runs that Slurm, or a failing machine, breaks off end as if nothing had happened: the same weights, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cluster import Cluster
from slow_run import SLOW_JOB, Run, check_same
from truba import Truba, events, run_dirs

LIMITED = "test_a_time_limit_is_reached_twice"


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster, request: pytest.FixtureRequest) -> list[Run]:
    """A run that reaches its time limit twice, and the same without one: on their way before all other tests.

    They wait for Slurm's clock rather than for the machine. Slurm looks every 30 s which limits are near, so of two
    minutes a start has 60 to 90 s; the whole run trains for three of them or more.
    """
    if not any(item.originalname == LIMITED for item in request.session.items if isinstance(item, pytest.Function)):
        return []
    # A partition that no other test takes nodes from.
    settings = ["resources.partition=barbun-cuda", "train.epochs=85", "resources.signal_seconds=30"]
    limits = {"limited": "2", "unlimited": "1h"}
    return [Run(Truba(cluster, name), *settings, f"resources.time={limit}") for name, limit in limits.items()]


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Result and history of the run that nothing interrupts."""
    run = Run(Truba(cluster, "uninterrupted"))
    return run.finish(), run.history()


def test_slurms_signal_twice(truba: Truba, whole: Any) -> None:
    run = Run(truba)
    for start in (1, 2):
        run.wait_for_step(start)
        truba.cluster.run(["scancel", "--signal=USR2", run.job_id])
        run.wait_until(lambda start=start: run.starts() > start)  # type: ignore[misc]
    check_same(run, whole, restarts=2, requeues=2, steps_lost=0)
    assert len(truba.jobs(f"{run.path.name}.")) == 1, "it went back into the queue under its own id"


def test_preemption_by_a_better_partition(truba: Truba, whole: Any) -> None:
    run = Run(truba, "resources.partition=lowprio")
    run.wait_for_step(1)
    better = truba.cluster.preempt(["akya1", "akya2", "akya3", "akya4"])
    truba.cluster.wait_for_state(better, "COMPLETED", timeout=240)
    check_same(run, whole, restarts=1, steps_lost=0)


def test_a_requeue_in_mid_epoch_and_a_cancelled_run_that_goes_on_when_it_is_submitted_again(
    truba: Truba, whole: Any
) -> None:
    run = Run(truba)
    run.wait_for_step(1)
    truba.cluster.run(["scontrol", "requeue", run.job_id], user="root")
    run.wait_until(lambda: run.starts() > 1)
    run.wait_for_step(2)
    assert truba("cancel", run.path.name).returncode == 0
    run.wait_until(lambda: truba.status()[0]["state"] == "CANCELLED")
    first_job = run.job_id
    run.submit()
    assert run.job_id != first_job
    check_same(run, whole, restarts=2, requeues=0, steps_lost=0)


def test_a_run_that_comes_no_further_is_given_up(truba: Truba) -> None:
    truba.write("jobs/dying.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    truba.write("jobs/slow.py", SLOW_JOB)
    arguments = ("+experiment=mnist", "job.module=dying", "data.name=digits", truba.runs_folder())
    submitted = truba(*arguments, TRUBA_LANG="tr")
    assert submitted.returncode == 0, submitted.stderr
    (path,) = run_dirs(truba.project)
    job_id = str(events(path)[1]["job_id"])
    truba.cluster.wait_for_state(job_id, "FAILED", timeout=240, in_accounting=True)
    # The job speaks the language of the command that has submitted it, and is understood in any.
    assert "başlangıç ilerleyemedi" in truba.status()[0]["why"]
    (told,) = json.loads(truba("why", path.name, "--json").stdout)
    assert told["findings"][0]["reason"] == "gave-up"


@pytest.mark.slow
def test_a_node_that_goes_down(truba: Truba, whole: Any) -> None:
    run = Run(truba)
    run.wait_for_step(1)
    node = run.node()
    truba.cluster.node_down(node)
    try:
        run.wait_until(lambda: run.starts() > 1, 300)
        check_same(run, whole, restarts=1)
    finally:
        truba.cluster.node_up(node)


@pytest.mark.slow
def test_a_time_limit_is_reached_twice(limited: list[Run]) -> None:
    run, unlimited = limited
    whole = unlimited.finish(400), unlimited.history()
    restarts = run.finish(400)["restarts"]
    assert restarts >= 2, "a machine with other work reaches it more often"
    check_same(run, whole, restarts=restarts, requeues=restarts, steps_lost=0)
    starts = [event for event in events(run.path) if event["event"] == "started"]
    signals = [event["time"] for event in events(run.path) if event["event"] == "requeued"]
    for start, signalled in zip(starts, signals, strict=False):
        assert 45 < signalled - start["time"] < 120, "Slurm's own signal, before the limit of two minutes"
    # One more where the last signal found the training done.
    assert run.log().count("the time limit is near") in {restarts, restarts + 1}
