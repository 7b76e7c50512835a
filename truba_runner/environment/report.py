"""Report a Python's packages for training as a line of JSON; that Python, however old, runs the text of this file.

The packages are not imported: on a login node importing TensorFlow is not allowed, and it takes ten seconds.
"""

import base64
import hashlib
import importlib.util
import json
import mmap
import os
import re
import sys
from typing import Any, Dict, List  # noqa: UP035  # The environment's Python may be older than 3.9.

MARK = "TRUBA-ENVIRONMENT "
PACKAGES = ("tensorflow", "keras", "torch", "torchvision", "fastai", "keras-tuner", "numpy", "matplotlib")
# The file in which a framework names, as text, the CUDA version that it was built for.
BUILT_FOR = {
    "tensorflow": ("python/platform/build_info.py", r"""["']cuda_version["'][:,]\s*["']([^"']+)"""),
    "torch": ("version.py", r"""^cuda\b[^=\n]*=\s*["']([^"']+)"""),
}
# What those files say if a framework was built without CUDA.
NOT_FOR_CUDA = {"tensorflow": r"""["']is_cuda_build["'][:,]\s*False""", "torch": r"""^cuda\b[^=\n]*=\s*None"""}
# The file, and the list in it, of the GPU architectures that a framework has kernels for (sm_70), or PTX code for
# (compute_90), which the driver compiles for newer ones. torch's is what torch.cuda.get_arch_list() returns, compiled
# into a library of 30 MB, in which a pattern that begins with fixed text is found ten times as fast.
ARCHITECTURES = {
    "tensorflow": (BUILT_FOR["tensorflow"][0], rb"cuda_compute_capabilities[^\]]*"),
    "torch": ("lib/libtorch_python.so", rb"sm_\d+[af]?(?:[ ;,]+(?:sm|compute)_\d+[af]?)*"),
}
# Libraries whose packages for different CUDA versions write the same file, and the start of its name.
SHARED = {"cudnn": "libcudnn.so", "nccl": "libnccl.so"}
CUDAS = ("cu11", "cu12", "cu13", "cu14")


def report() -> Dict[str, Any]:  # noqa: UP006
    """Return versions of Python, of packages by name, and of CUDA by the framework built for it; see `shared`.

    `architectures`: the GPU architectures that each framework has code for; `without_cuda`: frameworks built for CPUs
    only; `cudnn`: the version of cuDNN that each framework loads, if it is installed as a package.
    """
    packages = {name: version_of(name) for name in PACKAGES}
    packages = {name: version for name, version in packages.items() if version}
    frameworks = [name for name in BUILT_FOR if name in packages]
    cuda = {name: built_for(name, *BUILT_FOR[name]) for name in frameworks}
    kernels = {name: architectures(name, *ARCHITECTURES[name]) for name in frameworks}
    without = [name for name in frameworks if not cuda[name] and says(name, BUILT_FOR[name][0], NOT_FOR_CUDA[name])]
    return {
        "python": ".".join(str(number) for number in sys.version_info[:3]),
        "executable": sys.executable,
        "packages": packages,
        "cuda": {name: version for name, version in cuda.items() if version},
        "architectures": {name: found for name, found in kernels.items() if found},
        "without_cuda": without,
        "cudnn": {name: found for name, found in ((name, cudnn(name)) for name in frameworks) if found},
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


def cudnn(framework: str) -> str:
    """Return the version of the installed cuDNN package that a framework requires; empty if there is none."""
    try:
        from importlib.metadata import PackageNotFoundError, distribution
    except ImportError:
        return ""
    try:
        wanted = distribution(framework).requires or []
    except PackageNotFoundError:
        return ""
    for name in ["nvidia-cudnn-" + cuda for cuda in CUDAS]:
        try:
            if any(re.match(name + r"\b", one) for one in wanted):
                return str(distribution(name).version)
        except PackageNotFoundError:
            continue
    return ""


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
    match = re.search(pattern, text_of(name, file), re.MULTILINE)
    return match.group(1) if match else ""


def says(name: str, file: str, pattern: str) -> bool:
    """Return whether a framework's file has text that matches the pattern."""
    return re.search(pattern, text_of(name, file), re.MULTILINE) is not None


def text_of(name: str, file: str) -> str:
    """Return the text of a package's file; empty if there is no such file."""
    for path in paths_of(name, file):
        try:
            with open(path) as source:
                return source.read()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def architectures(name: str, file: str, pattern: bytes) -> List[str]:  # noqa: UP006
    """Return the GPU architectures listed in a framework's file; none if it lists none."""
    for path in paths_of(name, file):
        try:
            with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # The library may also name single architectures; the list is the longest match.
                longest = max((found.group() for found in re.finditer(pattern, content)), key=len, default=b"")
        except (OSError, ValueError):
            continue
        if longest:
            names = [one.decode() for one in re.findall(rb"(?:sm|compute)_\d+[af]?", longest)]
            return with_kernels(names) if name == "tensorflow" else names
    return []


def with_kernels(names: List[str]) -> List[str]:  # noqa: UP006
    """Return TensorFlow's names in CUDA's terms: its compute_90 stands for kernels and PTX code (its configure.py)."""
    kernels = ["sm_" + one[len("compute_") :] for one in names if one.startswith("compute_")]
    return (
        [one for one in names if one.startswith("sm_")] + kernels + [one for one in names if one.startswith("compute_")]
    )


def paths_of(name: str, file: str) -> List[str]:  # noqa: UP006
    """Return where a package may have a file, without importing the package."""
    spec = importlib.util.find_spec(name)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [os.path.join(folder, *file.split("/")) for folder in folders]


if __name__ == "__main__":
    print(MARK + json.dumps(report()))
