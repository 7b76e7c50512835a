"""Fail or warn if a job asked for GPUs and the framework sees none."""

from __future__ import annotations

import os
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import print_error

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def tell_of_missing_gpus(gpus_asked: int, framework: str, package: str) -> None:
    """Warn that the CPU is used instead; `package` is pip's name of the framework with GPU support.

    Raises:
        truba_runner.errors.Failed: the node has NVIDIA's driver, so the environment cannot use its GPUs.
    """
    if NVIDIA_DRIVER.exists():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", _("not set"))
        # `truba why` recognises this error by `sees no GPU` or its translation: why/reasons.yaml.
        raise Failed(
            "{gpus} GPUs a node were requested and this node has NVIDIA's driver, but {framework} sees no GPU "
            "(CUDA_VISIBLE_DEVICES={visible}). Training on the CPU would waste the GPUs. Install {package} in the "
            "job's environment, or start its container with --nv; to train on the CPU, request none: "
            "resources.gpus=0.",
            gpus=gpus_asked,
            framework=framework,
            package=package,
            visible=visible,
        )
    print_error(
        "WARNING: {gpus} GPUs a node were requested, but this node has none. Training on the CPU, with a logical "
        "device in place of each GPU.",
        gpus=gpus_asked,
    )
