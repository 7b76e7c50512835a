"""A login node as TRUBA's: only Python 3.9, without `_ctypes` and packages, and an environment as bare as cron's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cluster import Cluster, left_out

VERSION = "3.9"
# What of Python's own library a bare installation does without; and TRUBA's module of Python 3.12 has no _ctypes.
_LEFT_OUT = ("test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "config-*", "_ctypes*")
_ABOUT = """
import json, sys, sysconfig
library = sysconfig.get_config_var("LDLIBRARY") if sysconfig.get_config_var("Py_ENABLE_SHARED") else ""
print(json.dumps([sysconfig.get_path("stdlib"), sysconfig.get_config_var("LIBDIR"), library and
                  sysconfig.get_config_var("INSTSONAME")]))
"""


def _python() -> str:
    """Return a Python of that version on this machine; without one the test is left out."""
    homes = [Path(home) for home in (os.environ.get("PYENV_ROOT", ""), Path.home() / ".pyenv") if home]
    found = [str(path) for home in homes for path in home.glob(f"versions/{VERSION}.*/bin/python{VERSION}")]
    python = next(iter([*found, shutil.which(f"python{VERSION}")]), None)
    return python or left_out(f"there is no Python {VERSION} here")


def _copy(python: str, to: Path) -> None:
    """Copy a Python to `to`, as bin/python3 and lib/, without its packages."""
    about = subprocess.run([python, "-I", "-S", "-c", _ABOUT], capture_output=True, text=True, check=True)
    library, folder, shared = json.loads(about.stdout)
    shutil.copytree(library, to / "lib" / f"python{VERSION}", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    (to / "bin").mkdir()
    copied = Path(shutil.copy(os.path.realpath(python), to / "bin" / "python3"))
    if shared:
        if shutil.which("patchelf") is None:
            left_out("patchelf is not installed")
        shutil.copy(Path(folder) / shared, to / "lib" / shared)
        subprocess.run(["patchelf", "--set-rpath", "$ORIGIN/../lib", str(copied)], check=True)


class LoginNode:
    """The cluster's login node with its own `python3`, and modules that only a read profile knows."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._folder = cluster.folder / "login"
        _copy(_python(), self._folder)
        self.home = cluster.folder / "home" / "ayse"

    def close(self) -> None:
        """Remove the modules and the Python: other tests use the same cluster."""
        for folder in (*(self.cluster.folder / "modules").iterdir(), self._folder):
            shutil.rmtree(folder)

    def __call__(self, *argv: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as ayse's cron would."""
        environment: Mapping[str, str] = {
            "HOME": str(self.home),
            "LOGNAME": "ayse",
            "SHELL": "/bin/sh",
            "PATH": f"{self._folder / 'bin'}:/usr/bin:/bin",
            "TRUBA_SCRATCH": str(self.cluster.scratch_root),  # /arf/scratch on TRUBA
            **variables,
        }
        bare = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in environment.items()), *argv]
        return self.cluster.run(bare, cwd=cwd, check=False)
