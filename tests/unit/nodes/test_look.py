"""What a job checks on a node before it trains."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from truba_runner.config.schema import Experiment
from truba_runner.nodes import gpus, look

Compose = Callable[..., Experiment]


@pytest.fixture
def healthy(experiment: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment on a node where all is well: its own disk is the temporary folder, and its GPUs are pretended."""
    monkeypatch.setenv("SLURMD_NODENAME", "akya7")
    (tmp_path / "runs").mkdir()
    overrides = ["cluster=truba", "resources.partition=akya-cuda", f"cluster.runs_folder={tmp_path}/runs"]
    overrides += [f"cluster.partitions.akya-cuda.local_scratch={tmp_path}", "cluster.node_check.node_disk_gb=0"]
    monkeypatch.setattr(gpus, "memory", lambda: [(15_900_000_000, 16_000_000_000)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return experiment(*overrides)


def with_limits(experiment: Experiment, **limits: Any) -> Experiment:
    cluster = replace(experiment.cluster, node_check=replace(experiment.cluster.node_check, **limits))
    return replace(experiment, cluster=cluster)


def fault_of(experiment: Experiment) -> tuple[str, str]:
    fault = look.look(experiment).fault
    assert fault is not None and fault.node == "akya7"
    return fault.check, fault.message


def test_a_healthy_node_has_no_fault_and_leaves_no_file(healthy: Experiment) -> None:
    seen = look.look(healthy)
    assert (seen.node, seen.fault) == ("akya7", None)
    assert set(seen.seen) == {"node_disk_gb", "shared_disk_seconds", "clock_seconds", "python", "gpus", "gpu_free_gb"}
    assert not list(Path(healthy.cluster.runs_folder).iterdir())


def test_what_is_printed_of_a_node_is_read_again(healthy: Experiment, capfd: pytest.CaptureFixture[str]) -> None:
    seen = look.look(with_limits(healthy, node_disk_gb=1e9))
    assert look.from_line(json.dumps(seen, default=vars)) == seen
    for line in ("", "slurmstepd: error", "7", "{}", '{"node": "akya1"}'):
        assert look.from_line(line) is None


def test_a_full_disk_of_the_node(healthy: Experiment) -> None:
    check, message = fault_of(with_limits(healthy, node_disk_gb=1e9))
    assert check == "node_disk" and "less than 1e+09 GB" in message


def test_a_shared_disk_that_cannot_be_written(healthy: Experiment) -> None:
    Path(healthy.cluster.runs_folder).rmdir()
    assert fault_of(healthy)[0] == "shared_disk"


def test_a_shared_disk_that_gives_back_something_else(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(len(data)) if len(data) > 9999 else data))
    assert fault_of(healthy)[0] == "shared_disk"


def test_a_full_shared_disk_is_full_on_every_node(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert look.look(healthy).fault is None


def test_a_clock_that_is_ahead(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    check, message = fault_of(healthy)
    assert check == "clock" and "by 1" in message


def test_a_package_that_is_not_there(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("sys.meta_path", sys.meta_path[:2])
    for name in ("tensorflow", "keras"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    check, message = fault_of(healthy)
    assert check == "environment" and "tensorflow" in message


def memory(*answers: Any) -> Callable[[], Any]:
    def answer() -> Any:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return list(answers)

    return answer


@pytest.mark.parametrize(
    "answer, check, words",
    [
        (gpus.GpuError("cuInit: CUDA_ERROR_UNKNOWN"), "gpus", "CUDA_ERROR_UNKNOWN"),
        ((15_900_000_000, 16_000_000_000), "gpus", "1 of 2 GPUs"),
    ],
)
def test_gpus_that_fail_or_are_missing(
    healthy: Experiment, monkeypatch: pytest.MonkeyPatch, answer: Any, check: str, words: str
) -> None:
    monkeypatch.setattr(gpus, "memory", memory(answer))
    found = fault_of(replace(healthy, resources=replace(healthy.resources, gpus=2)))
    assert found[0] == check and words in found[1]


def test_a_task_that_sees_only_its_own_gpu_misses_none(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    two = replace(healthy, resources=replace(healthy.resources, gpus=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert look.look(two).fault is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert fault_of(two) == ("gpus", "1 of 2 GPUs are seen")


def test_a_gpu_whose_memory_somebody_else_holds(healthy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "memory", memory((4_000_000_000, 16_000_000_000)))
    monkeypatch.setattr(gpus, "processes", lambda: "4711, 11000 MiB, python (mehmet)")
    check, message = fault_of(healthy)
    assert check == "gpu_memory" and "4.0 of 16.0 GB" in message and "mehmet" in message


def test_gpus_of_which_the_site_does_not_say_what_they_are_are_not_checked(
    experiment: Compose, healthy: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "memory", memory(gpus.GpuError("no driver")))
    akya = replace(healthy.cluster.partitions["akya-cuda"], compute_capability="")
    cluster = replace(healthy.cluster, partitions={**healthy.cluster.partitions, "akya-cuda": akya})
    assert look.look(replace(healthy, cluster=cluster)).fault is None


def records_of(work: Callable[[], Iterator[Mapping[str, Any]]], seconds: float = 60) -> list[dict[str, Any]]:
    with look.in_child(work, seconds) as records:
        return list(records)


def test_a_check_that_hangs_or_is_killed_is_a_fault() -> None:
    def hangs() -> Iterator[Mapping[str, Any]]:
        yield {"begins": "gpus"}
        time.sleep(600)

    def is_killed() -> Iterator[Mapping[str, Any]]:
        yield {"begins": "gpus"}
        os.kill(os.getpid(), signal.SIGKILL)

    assert records_of(hangs, 0.3) == [{"begins": "gpus"}, {"fault": "no answer within 0.3 s"}]
    assert records_of(is_killed) == [{"begins": "gpus"}, {"fault": "the check was killed by signal 9"}]


def test_a_mistake_of_the_program_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    def is_wrong() -> Iterator[Mapping[str, Any]]:
        yield {"seen": {}}
        raise KeyError("mine")

    assert records_of(is_wrong) == [{"seen": {}}]
    assert "KeyError: 'mine'" in capfd.readouterr().err
