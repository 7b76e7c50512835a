"""Report a Python's packages for training as a line of JSON; that Python, however old, runs the text of this file.

The packages are not imported: on a login node importing TensorFlow is not allowed, and it takes ten seconds.
"""

import base64
import hashlib
import importlib.util
import json
import os
import re
import sys
from typing import Any, Dict  # noqa: UP035  # For the oldest.

MARK = "TRUBA-ENVIRONMENT "
PACKAGES = ("tensorflow", "keras", "torch", "torchvision", "fastai", "keras-tuner", "numpy", "matplotlib")
# The file in which a framework names, as text, the CUDA version that it was built for.
BUILT_FOR = {
    "tensorflow": ("python/platform/build_info.py", r"""["']cuda_version["'][:,]\s*["']([^"']+)"""),
    "torch": ("version.py", r"""^cuda\b[^=\n]*=\s*["']([^"']+)"""),
}
# Libraries whose packages for different CUDA versions write the same file, and the start of its name.
SHARED = {"cudnn": "libcudnn.so", "nccl": "libnccl.so"}
CUDAS = ("cu11", "cu12", "cu13", "cu14")


def report() -> Dict[str, Any]:  # noqa: UP006
    """Return versions of Python, of packages by name, and of CUDA by the framework built for it; see `shared`."""
    packages = {name: version_of(name) for name in PACKAGES}
    packages = {name: version for name, version in packages.items() if version}
    cuda = {name: built_for(name, *BUILT_FOR[name]) for name in BUILT_FOR if name in packages}
    return {
        "python": ".".join(str(number) for number in sys.version_info[:3]),
        "executable": sys.executable,
        "packages": packages,
        "cuda": {name: version for name, version in cuda.items() if version},
        "shared": {name: found for name, found in ((name, shared(name)) for name in SHARED) if found},
    }


def shared(library: str) -> Dict[str, Any]:  # noqa: UP006
    """Return `packages` with versions, `asked` and `loaded` of a library installed for several CUDAs, else nothing.

    By framework: `asked` is the package that it requires, `loaded` the package whose file is in that one's place.
    """
    try:
        from importlib.metadata import PackageNotFoundError, distribution
    except ImportError:
        return {}
    packages, asked = {}, {}
    for name in ["nvidia-" + library + "-" + cuda for cuda in CUDAS]:
        try:
            packages[name] = distribution(name)
        except PackageNotFoundError:
            continue
    if len(packages) < 2:
        return {}
    for framework in BUILT_FOR:
        try:
            wanted = distribution(framework).requires or []
        except PackageNotFoundError:
            continue
        names = [name for name in packages if any(re.match(name + r"\b", one) for one in wanted)]
        if names:
            asked[framework] = names[0]
    files = {name: library_file(package, SHARED[library]) for name, package in packages.items()}
    loaded = {framework: owner(files[name], files) for framework, name in asked.items()}
    versions = {name: str(package.version) for name, package in packages.items()}
    return {"packages": versions, "asked": asked, "loaded": loaded}


def library_file(package: Any, start: str) -> Any:
    """Return the first file of a package whose name begins with `start`."""
    return next((file for file in package.files or () if file.name.startswith(start)), None)


def owner(file: Any, files: Dict[str, Any]) -> str:  # noqa: UP006
    """Return which of the packages that write a file wrote it last; empty if that is not apparent."""
    if file is None:
        return ""
    path = str(file.locate())
    claims = {name: other for name, other in files.items() if other is not None and str(other.locate()) == path}
    try:
        size = os.path.getsize(path)
    except OSError:
        return ""
    fitting = [name for name, other in claims.items() if other.size == size]
    if len(fitting) > 1:
        digest = hashlib.sha256()
        with open(path, "rb") as opened:
            for part in iter(lambda: opened.read(1 << 20), b""):
                digest.update(part)
        value = base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
        fitting = [name for name in fitting if claims[name].hash and claims[name].hash.value == value]
    return fitting[0] if fitting else ""


def version_of(name: str) -> str:
    """Return a package's version; empty if it cannot be imported, `?` if its metadata is unreadable."""
    try:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            return ""
    except (ImportError, ValueError):
        return ""
    try:
        from importlib.metadata import version
    except ImportError:
        return "?"
    # Builds for CPUs or GPUs are distributed under other names.
    for one in (name, name + "-gpu", name + "-cpu", "intel-" + name):
        try:
            return str(version(one))
        except Exception:  # noqa: S112  # Metadata may be missing or damaged; the package is there all the same.
            continue
    return "?"


def built_for(name: str, file: str, pattern: str) -> str:
    """Return the CUDA version in a framework's own files; empty if it was built for CPUs."""
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
