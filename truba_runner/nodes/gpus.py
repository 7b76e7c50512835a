"""Check GPUs through the driver's own library, without a framework."""

from __future__ import annotations

import ctypes
import os
import pwd
import subprocess
from contextlib import suppress

from truba_runner.language import _

_LIBRARY = "libcuda.so.1"
# nvidia-smi hangs on some broken GPUs.
_NVIDIA_SMI_SECONDS = 2.0


class GpuError(Exception):
    """A call of the driver's library failed."""


def memory() -> list[tuple[int, int]]:
    """Make a CUDA context on each GPU of this process and return each one's free and total memory in bytes.

    Raises:
        GpuError: there is no driver, or one of its calls failed.
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise GpuError(str(error)) from error

    def call(name: str, *arguments: object) -> None:
        if status := getattr(cuda, name)(*arguments):
            words = ctypes.c_char_p()
            cuda.cuGetErrorName(status, ctypes.byref(words))
            raise GpuError(f"{name}: {(words.value or b'').decode() or status}")

    count = ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        try:
            call("cuDeviceGet", ctypes.byref(device), index)
            call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            call("cuCtxSetCurrent", context)
            call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        except GpuError as error:
            raise GpuError(_("GPU {index}: {error}", index=index, error=error)) from error
        found.append((free.value, total.value))
    return found


def processes() -> str:
    """Return the processes that use the node's GPUs, as nvidia-smi lists them; empty if it cannot be asked."""
    argv = ["nvidia-smi", "--query-compute-apps=pid,used_memory,process_name", "--format=csv,noheader"]
    found = []
    with suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run(argv, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
        for line in text.splitlines():
            pid = line.partition(",")[0].strip()
            if pid != str(os.getpid()):
                found.append(f"{line.strip()} ({_owner_of(pid)})")
    return "; ".join(found)


def _owner_of(pid: str) -> str:
    with suppress(OSError, KeyError):
        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    return "?"
