"""What a Python has for training, as a line of JSON; its text is run by the Python in question, however old that is.

Nothing of it is imported: on a login node TensorFlow may not be, and takes ten seconds.
"""

import importlib.util
import json
import os
import re
import sys
from typing import Any, Dict  # noqa: UP035  # For the oldest.

MARK = "TRUBA-ENVIRONMENT "
PACKAGES = ("tensorflow", "keras", "torch", "torchvision", "fastai", "keras-tuner", "numpy", "matplotlib")
# Where a framework names the CUDA that it was built for, as text.
BUILT_FOR = {
    "tensorflow": ("python/platform/build_info.py", r"""["']cuda_version["'][:,]\s*["']([^"']+)"""),
    "torch": ("version.py", r"""^cuda\b[^=\n]*=\s*["']([^"']+)"""),
}


def report() -> Dict[str, Any]:  # noqa: UP006
    """Versions of Python, of packages by name, and of CUDA by the framework that was built for it."""
    packages = {name: version_of(name) for name in PACKAGES}
    packages = {name: version for name, version in packages.items() if version}
    cuda = {name: built_for(name, *BUILT_FOR[name]) for name in BUILT_FOR if name in packages}
    return {
        "python": ".".join(str(number) for number in sys.version_info[:3]),
        "executable": sys.executable,
        "packages": packages,
        "cuda": {name: version for name, version in cuda.items() if version},
    }


def version_of(name: str) -> str:
    """A package's version; empty where it can't be imported."""
    try:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            return ""
    except (ImportError, ValueError):
        return ""
    try:
        from importlib.metadata import version
    except ImportError:
        return "?"
    # Builds of the same package have names of their own.
    for one in (name, name + "-gpu", name + "-cpu", "intel-" + name):
        try:
            return str(version(one))
        except Exception:  # noqa: S112  # Metadata may be missing or damaged; the package is there all the same.
            continue
    return "?"


def built_for(name: str, file: str, pattern: str) -> str:
    """The CUDA version in a framework's own files; empty for one that was built for CPUs."""
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            with open(os.path.join(folder, *file.split("/"))) as source:
                match = re.search(pattern, source.read(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if match:
            return match.group(1)
    return ""


if __name__ == "__main__":
    print(MARK + json.dumps(report()))
