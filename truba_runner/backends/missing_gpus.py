"""A job that asked for GPUs and sees none: its node has none, or its environment cannot use them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from truba_runner.errors import Failed

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def tell_of_missing_gpus(gpus_asked: int, framework: str, package: str) -> None:
    """Warns that the CPU is trained on instead; `package` is what pip calls the framework with GPU support.

    Raises:
        truba_runner.errors.Failed: the node has GPUs.
    """
    if NVIDIA_DRIVER.exists():
        raise Failed(
            f"{gpus_asked} GPUs a node were asked for and this node has NVIDIA's driver, but {framework} sees no GPU "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}). Training on the CPU would "
            f"waste the GPUs. Install {package} in the job's environment, or start its container with --nv; "
            "to train on the CPU, ask for none: resources.gpus=0."
        )
    print(
        f"WARNING: {gpus_asked} GPUs a node were asked for, but this node has none. "
        "Training on the CPU, with a logical device in place of each GPU.",
        file=sys.stderr,
        flush=True,
    )
