"""How much of its GPUs a training uses: their memory as the framework counts it, their time as nvidia-smi does."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable

_TIMEOUT_SECONDS = 20.0
_GIGABYTE = 1e9


class GpuUse:
    """The GPUs of this process; without one it has nothing to tell."""

    def __init__(self, peak_bytes: Callable[[], float] | None) -> None:
        """`peak_bytes`: what of the fullest GPU was in use at most; None where there is no GPU."""
        self._peak_bytes = peak_bytes
        self._program = shutil.which("nvidia-smi") if peak_bytes else None
        self._percent = math.nan

    @property
    def watched(self) -> bool:
        """Whether `look` has something to look at."""
        return self._program is not None

    def look(self) -> None:
        """Asks nvidia-smi, which takes a moment: for a thread beside the training."""
        self._percent = _mean_utilization(self._program) if self._program else math.nan

    def values(self) -> dict[str, float]:
        """By the curves' names, always the same ones; what could not be found out is NaN."""
        found = {"gpu_memory_gb": self._peak_bytes() / _GIGABYTE} if self._peak_bytes else {}
        return {**found, "gpu_utilization_percent": self._percent} if self._program else found


def _mean_utilization(program: str) -> float:
    """Percent of the last moment, the mean over the job's GPUs; NaN where it is not told."""
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
        percents = [float(line) for line in done.stdout.split("\n") if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return math.nan
    return sum(percents) / len(percents) if percents else math.nan
