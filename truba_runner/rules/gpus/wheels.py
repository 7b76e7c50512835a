"""The official packages of the frameworks for Linux x86-64, and the GPU architectures that each has kernels for.

docs/gpus.md says where each row comes from. Used for remedies, and where an installed package does not list its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from truba_runner.rules.gpus.architecture import has_kernels, has_ptx, numbers

_PASCAL = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
_VOLTA = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
_TURING = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Wheels:
    """Packages of one framework for one CUDA version: from version `first` to `last`, both included."""

    framework: str
    first: str
    last: str
    cuda: str
    architectures: tuple[str, ...]
    # The suffix of their version: cu126.
    tag: str = ""

    def said(self) -> str:
        """Describe them as they are asked for: `torch 2.6 … 2.14 (cu126)`."""
        versions = self.first if self.first == self.last else f"{self.first} … {self.last}"
        return f"{self.framework} {versions} ({self.tag or 'CUDA ' + self.cuda})"


# The newest first.
WHEELS = (
    Wheels("torch", "2.15", "2.15", "13.2", _TURING, "cu132"),
    Wheels("torch", "2.9", "2.14", "13.0", _TURING, "cu130"),
    Wheels("torch", "2.11", "2.11", "12.8", _TURING, "cu128"),
    Wheels("torch", "2.8", "2.10", "12.8", _VOLTA, "cu128"),
    Wheels("torch", "2.7", "2.7", "12.8", _TURING, "cu128"),
    Wheels("torch", "2.6", "2.14", "12.6", _PASCAL, "cu126"),
    Wheels("torch", "2.6", "2.6", "12.4", _PASCAL, "cu124"),
    Wheels("torch", "2.6", "2.7", "11.8", _PASCAL, "cu118"),
    Wheels("tensorflow", "2.18", "2.21", "12.5", ("sm_60", "sm_70", "sm_80", "sm_89", "sm_90", "compute_90")),
)


def of_version(framework: str, version: str) -> Wheels | None:
    """Return the row of a package by its version (2.7.1+cu118); None if there is no such row, or no suffix."""
    tag = version.partition("+")[2]
    rows = (row for row in WHEELS if row.framework == framework and row.tag and row.tag == tag)
    return next((row for row in rows if numbers(row.first) <= numbers(version) <= numbers(row.last)), None)


def for_gpu(framework: str, capability: tuple[int, ...], driver_cuda: str) -> Iterator[Wheels]:
    """Yield the packages that have code for a GPU and that its driver can run."""
    for row in WHEELS:
        driven = not driver_cuda or numbers(row.cuda)[0] <= numbers(driver_cuda)[0]
        fits = not capability or has_kernels(row.architectures, capability) or has_ptx(row.architectures, capability)
        if row.framework == framework and driven and fits:
            yield row
