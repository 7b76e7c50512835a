"""NVIDIA's compute capabilities, and which of a program's kernels run on a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterable

from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment

# The first compute capabilities with bfloat16 arithmetic (A100), and with tensor cores for half precision (V100).
BFLOAT16, HALF_PRECISION = (8, 0), (7, 0)


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare versions; empty if the text has no number."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def capability_of(experiment: Experiment) -> tuple[int, ...]:
    """Return the compute capability of the requested GPUs; empty if none are requested, or if it is unknown."""
    if experiment.cluster.scheduler != "slurm" or not experiment.resources.gpus:
        return ()
    return numbers(asked_for(experiment).compute_capability)


def has_kernels(architectures: Iterable[str], capability: tuple[int, ...]) -> bool:
    """Return whether kernels run on a GPU: those of the same major version (8.x) and no higher minor version.

    Source: CUDA C++ Programming Guide, "Binary Compatibility". `sm_90a` runs on compute capability 9.0 only.
    """
    return any(
        kind == "sm" and number[0] == capability[0] and (number == capability or (not only and number < capability))
        for kind, number, only in map(_parts, architectures)
    )


def has_ptx(architectures: Iterable[str], capability: tuple[int, ...]) -> bool:
    """Return whether the driver can compile PTX code for a GPU: code of the same or any lower compute capability.

    Source: CUDA C++ Programming Guide, "PTX Compatibility".
    """
    return any(
        kind == "compute" and (number == capability or (not only and number < capability))
        for kind, number, only in map(_parts, architectures)
    )


def _parts(architecture: str) -> tuple[str, tuple[int, ...], bool]:
    """Return the parts of `sm_90a`: its kind, its compute capability, and whether it is for that one only."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if not match:
        return "", (), False
    return match[1], (int(match[2]), int(match[3])), match[4] == "a"
