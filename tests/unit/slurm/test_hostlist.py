from __future__ import annotations

import json

import pytest

from truba_runner.errors import Failed
from truba_runner.slurm import hostlist
from truba_runner.training.keras.devices.team import tf_config
from truba_runner.training.ranks.addresses import FIRST_PORT, PORTS, worker_addresses


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("akya1", ["akya1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("akya[1-3,7],barbun121", ["akya1", "akya2", "akya3", "akya7", "barbun121"]),
        ("node[08-10]", ["node08", "node09", "node10"]),
        ("b7,a[2,1]", ["b7", "a2", "a1"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
        ("gpu[1-2]-ib", ["gpu1-ib", "gpu2-ib"]),
    ],
)
def test_node_lists_as_slurm_prints_them(text: str, names: list[str]) -> None:
    assert hostlist.expand(text) == names


@pytest.mark.parametrize("text", ["", "a[1-", "a[1-3", "a[x]", "a[]", "a,,b", "a]b", ","])
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of nodes"):
        hostlist.expand(text)


def test_tasks_of_each_node() -> None:
    assert hostlist.tasks_per_node("1(x2)") == [1, 1]
    assert hostlist.tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="how many tasks"):
        hostlist.tasks_per_node("two")


def slurm(nodes: str = "akya[1-2]", per_node: str = "1(x2)", job_id: str = "7") -> dict[str, str]:
    return {"SLURM_JOB_NODELIST": nodes, "SLURM_TASKS_PER_NODE": per_node, "SLURM_JOB_ID": job_id}


def test_every_rank_has_an_address_that_follows_from_the_job() -> None:
    port = FIRST_PORT + 7
    assert worker_addresses(slurm(), 2) == [f"akya1:{port}", f"akya2:{port}"]
    step = {**slurm("akya[1-9]", "1(x9)"), "SLURM_STEP_NODELIST": "akya5", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert worker_addresses(step, 1) == [f"akya5:{port}"]
    assert len(set(worker_addresses(slurm("here", "2"), 2))) == 2


def test_jobs_on_one_node_have_ports_of_their_own() -> None:
    ports = {worker_addresses(slurm(job_id=str(job)), 2)[0].split(":")[1] for job in range(10**6, 10**6 + PORTS)}
    assert len(ports) == PORTS
    assert all(1024 < int(port) < 32768 for port in ports)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "do not say where the 2 tasks"),
        (slurm("akya["), "akya\\["),
        (slurm(per_node="1(x3)"), "do not say"),
        (slurm("akya1", "1"), "SLURM_NTASKS is 2"),
    ],
)
def test_an_environment_without_the_other_ranks_is_explained(environment: dict[str, str], message: str) -> None:
    with pytest.raises(Failed, match=message):
        worker_addresses(environment, 2)


def test_tf_config_is_tensorflows() -> None:
    assert json.loads(tf_config(["a:1", "b:1"], 1)) == {
        "cluster": {"worker": ["a:1", "b:1"]},
        "task": {"type": "worker", "index": 1},
    }
