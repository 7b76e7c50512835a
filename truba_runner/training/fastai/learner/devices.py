"""Choose the device of a fastai process, deterministic algorithms and the precision."""

from __future__ import annotations

import os
import warnings
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.training.missing_gpus import tell_of_missing_gpus


def pick_device(gpus_asked: int, local_rank: int = 0) -> Any:
    """Return this process' own GPU as a torch.device; the CPU if there is none.

    Raises:
        truba_runner.errors.Failed: GPUs were requested and the node has some, but torch cannot use them.
    """
    import torch

    if torch.cuda.is_available():
        # One GPU a task: the task sees either all GPUs of its node or only its own.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if gpus_asked:
        tell_of_missing_gpus(gpus_asked, "torch", _("a torch that is built for CUDA"))
    return torch.device("cpu")


def describe(device: Any) -> str:
    """Return a device with its model's name: `cuda:0 (NVIDIA H100)`, or `CPU:0`."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "CPU:0"


def compute_the_same_each_time() -> None:
    """Choose algorithms that give the same bits for the same input, where torch has them; hide its warnings."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def set_precision(learner: Any, train: Train, device: Any) -> None:
    """Make the learner train in half precision if the config asks for it."""
    wanted = (train.mixed_precision or "float32").removeprefix("mixed_")
    if wanted == "float32":
        return
    if device.type != "cuda":
        print_error(
            "WARNING: train.mixed_precision={wanted} needs a GPU; using float32 here", wanted=train.mixed_precision
        )
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        warnings.filterwarnings("ignore", message=".*no CUDA.*")
    if wanted == "float16":
        learner.to_fp16()
    else:
        learner.to_bf16()


def convolve() -> None:
    """Run a small convolution on each GPU, without any on the CPU: on a broken node CUDA may work and cuDNN not.

    Raises:
        RuntimeError: a result is wrong, or torch's own error.
    """
    import torch

    for device in [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]:
        ones = torch.ones(1, 3, 8, 8, device=device), torch.ones(4, 3, 3, 3, device=device)
        summed = torch.nn.functional.conv2d(*ones).cpu()
        if not torch.equal(summed, torch.full_like(summed, 27.0)):
            raise RuntimeError(f"{device}: {summed.flatten()[0]}")
