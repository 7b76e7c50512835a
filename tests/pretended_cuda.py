"""A library in place of the GPU driver's, with as many GPUs, faults and free memory as a test wants."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#include <stddef.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { BROKEN; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = 16000000000; *free = FREE; return 0; }
int cuGetErrorName(int status, const char **words) { *words = "CUDA_ERROR_UNKNOWN"; return 0; }
"""
_HEALTHY = {"COUNT": "1", "BROKEN": "", "FREE": "15500000000"}


def built(folder: Path, **faults: str) -> Path:
    """Compile the library in a folder and return its file.

    `COUNT`: GPUs; `BROKEN`: C that runs when a context is made; `FREE`: free bytes of each GPU's 16 GB.
    """
    library = folder / "libcuda.so.1"
    defines = [f"-D{name}={value}" for name, value in (_HEALTHY | faults).items()]
    argv = ["cc", "-shared", "-fPIC", *defines, "-x", "c", "-", "-o", str(library)]
    subprocess.run(argv, input=_SOURCE, text=True, check=True)
    return library
