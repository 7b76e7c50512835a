"""GPUs are checked through the driver's own library; a pretended one stands in for it, as no GPU is at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pretended_cuda
import pytest

# What a job's check does, in a process that finds the library as a job does.
CHECK = """
from truba_runner.nodes import gpus, look
def work():
    try:
        yield {"seen": gpus.memory()}
    except gpus.GpuError as error:
        yield {"fault": str(error)}
with look.in_child(work, 5) as records:
    print(*records)
"""


def checked(folder: Path) -> str:
    environment = {"LD_LIBRARY_PATH": str(folder), "TRUBA_LANG": "en", "PYTHONPATH": ":".join(sys.path)}
    argv = [sys.executable, "-c", CHECK]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("faults", "record"),
    [
        ({}, "{'seen': [[15500000000, 16000000000]]}"),
        ({"COUNT": "2"}, "{'seen': [[15500000000, 16000000000], [15500000000, 16000000000]]}"),
        ({"COUNT": "0"}, "{'seen': []}"),
        ({"BROKEN": "return 999"}, "{'fault': 'GPU 0: cuDevicePrimaryCtxRetain: CUDA_ERROR_UNKNOWN'}"),
        ({"BROKEN": "for (;;)"}, "{'fault': 'no answer within 5 s'}"),
        ({"BROKEN": "__builtin_trap()"}, "{'fault': 'the check was killed by signal 4'}"),
    ],
)
def test_what_the_driver_does_is_what_is_recorded(tmp_path: Path, faults: dict[str, str], record: str) -> None:
    pretended_cuda.built(tmp_path, **faults)
    assert checked(tmp_path) == record


def test_a_node_without_a_driver(tmp_path: Path) -> None:
    assert "libcuda.so.1" in checked(tmp_path)
