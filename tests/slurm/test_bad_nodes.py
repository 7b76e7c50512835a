"""Jobs that meet a bad node leave it: they come back elsewhere, and the rest of their array does not go there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pretended_cuda
import pytest
from cluster import Cluster, wait_until
from truba import ROOT, Truba, events, run_dirs

NODES = ("akya1", "akya2", "akya3", "akya4")
RUNS = 100
# As many runs with one GPU as a node has.
AT_ONCE = 4
# tests/plain_backend: its convolution fails where this file is.
BROKEN_CUDNN = "/dev/shm/cuda/broken_cudnn"
BAD_GPUS = {
    "gpu_memory": {"FREE": "4000000000"},
    # The driver works; what the plain backend takes for cuDNN does not.
    "convolution": {},
    "gpus": {"BROKEN": "return 999"},
}


def on_node(cluster: Cluster, node: str, script: str) -> None:
    """Run shell lines as root with the files that a node sees."""
    enter = f'exec nsenter --target "$(ip netns pids {node} | head -1)" --mount bash -euc "$1"'
    cluster.run(["bash", "-c", enter, "on-node", script], user="root")


def spoil(truba: Truba, fault: str, bad: Sequence[str]) -> list[str]:
    """Give nodes a fault and return the overrides of runs that notice it."""
    if fault == "node_disk":
        disk = truba.project / "disk"
        truba.cluster.run(["mkdir", str(disk)])
        for node in bad:
            on_node(truba.cluster, node, f"mount -t tmpfs -o size=1m tmpfs {disk}")
        return [f"cluster.partitions.akya-cuda.local_scratch={disk}", "cluster.node_check.node_disk_gb=0.05"]
    for node in NODES:
        library = pretended_cuda.built(truba.project, **(BAD_GPUS[fault] if node in bad else {}))
        # Each node has its own /dev/shm.
        on_node(
            truba.cluster,
            node,
            f"mkdir -p /dev/shm/cuda; cp {library} /dev/shm/cuda/; chmod -R a+rX /dev/shm/cuda",
        )
        if fault == "convolution" and node in bad:
            on_node(truba.cluster, node, f"touch {BROKEN_CUDNN}")
    return [
        'cluster.partitions.akya-cuda.compute_capability="7.0"',
        'environment.setup=["export LD_LIBRARY_PATH=/dev/shm/cuda"]',
        "cluster.node_check.seconds=5",
    ]


def mend(truba: Truba) -> None:
    for node in NODES:
        on_node(truba.cluster, node, f"umount {truba.project}/disk 2>/dev/null || true; rm -rf /dev/shm/cuda")


def command(truba: Truba, *overrides: str) -> list[str]:
    plain = ROOT / "tests" / "plain_backend"
    truba.environment["PYTHONPATH"] = f"{ROOT}:{plain}"
    truba.write("jobs/nothing.py", "")
    return [
        "+experiment=mnist", "job.module=nothing", "job.backend=plain", "data.name=digits", "train.epochs=1",
        f"name={truba.project.name}", "resources.partition=akya-cuda", truba.runs_folder(), *overrides,
    ]  # fmt: skip


def submit(truba: Truba, *arguments: str) -> None:
    done = truba(*arguments)
    assert done.returncode == 0, done.stderr


def all_events(truba: Truba) -> dict[str, list[dict[str, Any]]]:
    return {run.name: events(run) for run in run_dirs(truba.project)}


def results(truba: Truba) -> int:
    return len([run for run in run_dirs(truba.project) if (run / "result.json").exists()])


def failed(truba: Truba) -> list[str]:
    found = []
    for run in run_dirs(truba.project):
        if (progress := run / "progress.json").exists():
            record = json.loads(progress.read_text())
            found += [f"{run.name}: {record.get('error')}"] if record.get("state") == "failed" else []
    return found


def logs(truba: Truba) -> str:
    files = sorted(Path(truba.project / "runs").rglob("*.out"))
    return "\n".join(f"{file}: {file.read_text()[-1500:]}" for file in files[-6:])


@pytest.mark.parametrize(("fault", "runs"), [("node_disk", RUNS), ("gpu_memory", 12), ("convolution", 12)])
def test_an_array_loses_a_few_starts_and_no_run(truba: Truba, fault: str, runs: int) -> None:
    overrides = spoil(truba, fault, ["akya1"])
    try:
        submit(truba, "-m", *command(truba, *overrides, f"train.seed=range({runs})"))
        wait_until(lambda: results(truba) == runs or failed(truba), lambda: f"{results(truba)} {logs(truba)}", 400)
    finally:
        mend(truba)
    assert not failed(truba)
    found = all_events(truba)
    left = {name: [one["node"] for one in own if one["event"] == "bad_node"] for name, own in found.items()}
    lost = Counter(node for nodes in left.values() for node in nodes)
    print(fault, lost)
    # Only those that ran there when the fault was found, and each once.
    assert set(lost) == {"akya1"} and lost["akya1"] <= AT_ONCE
    assert max(len(nodes) for nodes in left.values()) == 1
    checks = {one["check"] for own in found.values() for one in own if one["event"] == "bad_node"}
    assert checks == {fault}
    started = [[one["host"] for one in own if one["event"] == "started"] for own in found.values()]
    assert "akya1" not in {hosts[-1] for hosts in started}


def test_two_nodes_of_which_one_is_bad(truba: Truba) -> None:
    overrides = spoil(truba, "gpus", ["akya1"])
    try:
        mnist = ["+experiment=mnist", "data.name=digits", "train.epochs=1", "resources.partition=akya-cuda"]
        submit(truba, *mnist, truba.runs_folder(), *overrides, "resources.nodes=2")
        wait_until(lambda: results(truba) == 1 or failed(truba), lambda: logs(truba))
    finally:
        mend(truba)
    assert not failed(truba)
    (own,) = all_events(truba).values()
    assert [one["node"] for one in own if one["event"] == "bad_node"] == ["akya1"]
    last = [one["node"] for one in own if one["event"] == "looked"][-2:]
    assert len(set(last)) == 2 and "akya1" not in last


def test_a_healthy_start_has_what_it_saw_in_its_record(truba: Truba) -> None:
    submit(truba, *command(truba))
    wait_until(lambda: results(truba) == 1 or failed(truba), lambda: logs(truba))
    (own,) = all_events(truba).values()
    kinds = [one["event"] for one in own]
    assert kinds[:4] == ["intent", "submitted", "looked", "started"]
    looked = own[2]
    print(looked)
    assert looked["node"] == own[3]["host"] and set(looked["seen"]) >= {
        "node_disk_gb",
        "shared_disk_seconds",
        "clock_seconds",
    }
    assert not list((truba.project / "runs").glob(".look-*"))


def test_three_bad_nodes_in_a_row_end_the_run_with_all_three_reasons(truba: Truba) -> None:
    overrides = spoil(truba, "node_disk", ["akya1", "akya2", "akya3"])
    try:
        submit(truba, *command(truba, *overrides))
        wait_until(lambda: failed(truba) or results(truba), lambda: logs(truba), 300)
    finally:
        mend(truba)
    (reason,) = failed(truba)
    print(reason)
    assert all(f"{node}: node_disk: " in reason for node in ("akya1", "akya2", "akya3"))
    (own,) = all_events(truba).values()
    assert [one["node"] for one in own if one["event"] == "bad_node"] == ["akya1", "akya2", "akya3"]
    (row,) = truba.status()
    assert row["state"] == "FAILED"
