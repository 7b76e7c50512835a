"""Write the graph and the profile of a fastai training for TensorBoard, and measure GPU memory.

The graph is drawn by a private module of torch, `_pytorch_graph` (checked with torch 2.14.1); without it a note says
that there is no graph.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from truba_runner.training.backend import Context
from truba_runner.training.notes import noted_graph
from truba_runner.training.summaries.writer import SummaryWriter


def peak_bytes(device: Any) -> Callable[[], float] | None:
    """Return a function that returns the GPU's peak memory use in bytes; None on a CPU."""
    import torch

    return (lambda: float(torch.cuda.max_memory_allocated(device))) if device.type == "cuda" else None


def write_graph(context: Context, writer: SummaryWriter, learner: Any) -> None:
    """Write the modules and operations of a forward pass; note a network that cannot be traced."""
    import torch

    with noted_graph(context):
        from torch.utils.tensorboard._pytorch_graph import graph

        batch = learner.dls.one_batch()[: learner.dls.n_inp]
        inputs = tuple(part.as_subclass(torch.Tensor) for part in batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _stats = graph(learner.model, inputs, use_strict_trace=False)
        writer.add("train", 0, graph_def=found.SerializeToString())


class StepProfiler:
    """torch's profiler; writes a Chrome trace, which TensorBoard's profile page, Perfetto and Chrome open."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._profile: Any = None

    def start(self) -> None:
        """Profile from the next step on."""
        import torch
        from torch.profiler import ProfilerAction, ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        # The profiler marks steps only if it has a schedule.
        self._profile = profile(activities=activities, schedule=lambda step: ProfilerAction.RECORD)
        self._profile.start()

    def step(self) -> None:
        """Mark the boundary between two steps."""
        self._profile.step()

    def stop(self, folder: Path | None) -> None:
        """Stop; write HOST.trace.json.gz into `folder` unless that is None."""
        self._profile.stop()
        if folder is not None:
            self._profile.export_chrome_trace(str(folder / f"{socket.gethostname()}.trace.json.gz"))
