"""Two devices for the suite of this folder: the machine's first two GPUs, or on demand two logical CPU devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Starts of small runs, shared with the tests of the backends.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

ON_CPUS = os.environ.get("TRUBA_GPU_TESTS") == "cpu"


def gpus() -> int:
    """How many the driver lists; without importing a framework."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


@pytest.fixture(scope="session")
def two_devices() -> str:
    """`GPU` or `CPU`; without either the suite is left out."""
    if ON_CPUS:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "CPU"
    if (found := gpus()) < 2:
        pytest.skip(f"two GPUs are needed, and there are {found}; TRUBA_GPU_TESTS=cpu tries it on two CPU devices")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0,1")
    return "GPU"
