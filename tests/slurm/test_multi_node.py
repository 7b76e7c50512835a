"""A run on two nodes of the test cluster, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cluster import Cluster
from slow_run import SLOW_JOB, Run, check_same
from truba import Truba, events, run_dirs

COMMAND = ["+experiment=mnist", "resources.partition=akya-cuda", "data.name=digits", "train.epochs=2"]
# Raises on the second node, while the first waits for it.
FAILING_ON_ONE = """
import os
import keras, numpy as np

def build_model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(10)])

def load_data(name, folder):
    if os.environ["SLURM_PROCID"] == "1":
        raise RuntimeError("failing on purpose")
    return {"train": (np.zeros((64, 2)), np.zeros(64))}
"""
# At the first start the second node alone is told to end, before it has anything to save.
PARTED = (
    SLOW_JOB
    + """
import os, signal
if os.environ["SLURM_PROCID"] == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    get_data = load_data
    def load_data(name, folder):
        os.kill(os.getpid(), signal.SIGUSR2)
        return get_data(name, folder)
"""
)


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        found = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_two_nodes_agree_with_one(cluster: Cluster) -> None:
    truba = Truba(cluster, "multi-node")
    runs: dict[str, Path] = {}
    for name, resources in {
        "two": ["resources.nodes=2", "resources.gpus=2"],
        "one": ["resources.nodes=1", "resources.gpus=4"],
    }.items():
        submitted = truba(*COMMAND, *resources, truba.runs_folder(name))
        assert submitted.returncode == 0, submitted.stderr
        (runs[name],) = run_dirs(truba.project, name)
    jobs = {name: events(run)[1]["job_id"] for name, run in runs.items()}
    for job_id in jobs.values():
        cluster.wait_for_state(job_id, "COMPLETED", timeout=300)
    shown = cluster.run(["scontrol", "--oneliner", "show", "job", jobs["two"]]).stdout
    assert "NumNodes=2" in shown and "NumTasks=2" in shown and "NumCPUs=40" in shown and "gres/gpu=4" in shown

    results = {name: json.loads((run / "result.json").read_text()) for name, run in runs.items()}
    two, one = results["two"], results["one"]
    assert (two["tasks"], two["devices"], two["steps"]) == (2, ["CPU:0", "CPU:1"], one["steps"])
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert len(rows(runs["two"])) == 2
    for mine, theirs in zip(rows(runs["two"]), rows(runs["one"]), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert (runs["two"] / "predictions.npy").exists() and (runs["two"] / "model.keras").exists()


class PartedRun(Run):
    """The first start leaves the first node behind."""

    def prepare(self) -> list[str]:
        overrides = super().prepare()
        self.truba.write("jobs/slow.py", PARTED)
        return overrides


def test_two_nodes_go_on_after_one_has_left_and_in_mid_epoch_after_slurms_signal(cluster: Cluster) -> None:
    nodes = ["resources.nodes=2", "resources.gpus=1", "train.epochs=3"]
    whole, run = Run(Truba(cluster, "two-nodes"), *nodes), PartedRun(Truba(cluster, "two-nodes-interrupted"), *nodes)
    run.wait_for_step(2)
    assert "UnavailableError" in run.log(), "the first node has noticed"
    cluster.run(["scancel", "--signal=USR2", run.job_id])
    run.wait_until(lambda: run.starts() > 2)
    assert events(run.path)[-1]["position"][1], "it goes on in the middle of an epoch"
    expected = whole.finish()
    check_same(run, (expected, whole.history()), restarts=2, requeues=1, steps_lost=0)
    assert expected["tasks"] == 2


def test_a_fault_on_one_node_ends_the_job(cluster: Cluster) -> None:
    truba = Truba(cluster, "multi-node-fault")
    truba.write("jobs/failing_on_one.py", FAILING_ON_ONE)
    submitted = truba(
        *COMMAND, "job.module=failing_on_one", "resources.nodes=2", "resources.gpus=2", truba.runs_folder()
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    (run,) = run_dirs(truba.project)
    cluster.wait_for_state(events(run)[1]["job_id"], "FAILED", timeout=240)
    logs = "".join(path.read_text() for path in (run / "logs").iterdir())
    assert "failing on purpose" in logs
    assert sum(event["event"] == "started" for event in events(run)) == 1
    (row,) = truba.status()
    assert row["state"] == "FAILED" and 'raise RuntimeError("failing on purpose")' in row["why"]
