"""Measure a training's GPU use: memory as the framework counts it, utilization from nvidia-smi."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable

_TIMEOUT_SECONDS = 20.0
_GIGABYTE = 1e9


class GpuUse:
    """GPU memory and utilization of this process; no values without a GPU."""

    def __init__(self, peak_bytes: Callable[[], float] | None) -> None:
        """`peak_bytes`: returns the peak memory use of the fullest GPU; None without a GPU."""
        self._peak_bytes = peak_bytes
        self._program = shutil.which("nvidia-smi") if peak_bytes else None
        self._percent = math.nan

    @property
    def watched(self) -> bool:
        """Whether `look` can measure: there are GPUs and nvidia-smi."""
        return self._program is not None

    def look(self) -> None:
        """Update the utilization from nvidia-smi; slow, so call it in a background thread."""
        self._percent = _mean_utilization(self._program) if self._program else math.nan

    def values(self) -> dict[str, float]:
        """Return the values by curve name, always with the same names; unknown values are NaN."""
        found = {"gpu_memory_gb": self._peak_bytes() / _GIGABYTE} if self._peak_bytes else {}
        return {**found, "gpu_utilization_percent": self._percent} if self._program else found


def _mean_utilization(program: str) -> float:
    """Return the current utilization in percent, the mean over the job's GPUs; NaN if unknown."""
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
        percents = [float(line) for line in done.stdout.split("\n") if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return math.nan
    return sum(percents) / len(percents) if percents else math.nan
