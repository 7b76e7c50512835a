"""Make one zip file from which Python imports this package and its pure-Python dependencies, without installation.

    __main__.py                      executed by `python truba.pyz`
    truba_runner/, hydra_plugins/    this package, its conf/, jobs/ and container/
    hydra/, omegaconf/, …            packages needed in exactly these versions: take precedence over the environment's
    shared/                          packages of which other versions do: used only if the environment has none

The same files give the same bytes: sorted names, no times, no compression (its result depends on the zlib), no bytecode
(which suits only one version of Python).
"""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

import truba_runner
from truba_runner.errors import Failed
from truba_runner.storage.package_files import FOLDERS, shipped

# Versions that `truba bundle` packs. Hydra and OmegaConf need these versions of each other and of antlr4; these take
# precedence in environments that have others.
PINNED = {
    "hydra-core": "1.3.8",
    "omegaconf": "2.3.1",
    "antlr4-python3-runtime": "4.9.3",
    "submitit": "1.5.4",
}
# TensorFlow, Keras and torch install some of these as dependencies.
PINNED_SHARED = {
    "cloudpickle": "3.1.2",
    "packaging": "26.3",
    "PyYAML": "6.0.3",
    "rich": "15.0.0",
    "typing_extensions": "4.16.0",
}
SHARED = "shared/"

# Follows the text of python_check.py in the file's __main__.py.
_MAIN = b"""

refuse_older_python()

from truba_runner.__main__ import main

sys.exit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CODE = (".py", ".typed", ".yaml", ".json", ".mo")


def content(pinned: bool) -> bytes:
    """Return the bundle's bytes: with the installed versions or, if `pinned`, with those above, downloaded if needed.

    Raises:
        Failed: a package is not installed, or could not be downloaded.
    """
    if truba_runner.ARCHIVE:
        return Path(truba_runner.ARCHIVE).read_bytes()
    check = Path(truba_runner.__file__).with_name("python_check.py").read_bytes()
    files: dict[str, bytes] = {"__main__.py": check + _MAIN, **dict(_own_files())}
    with tempfile.TemporaryDirectory(prefix="truba-bundle-") as folder:
        for prefix, wanted in (("", PINNED), (SHARED, PINNED_SHARED)):
            for distribution in _distributions(wanted, Path(folder) if pinned else None):
                files |= {prefix + name: data for name, data in _files_of(distribution)}
    return _zipped(files)


def _own_files() -> Iterator[tuple[str, bytes]]:
    """Yield the files of this package, from wherever it is imported."""
    package = Path(truba_runner.__file__).resolve().parent
    for top in (package, package.parent / "hydra_plugins" / package.name):
        for file in sorted(top.rglob("*")):
            inside = PurePosixPath(*file.relative_to(package.parent).parts)
            if file.suffix in _CODE and "__pycache__" not in inside.parts and inside.parts[1] not in FOLDERS:
                yield str(inside), file.read_bytes()
    for folder in FOLDERS:
        for file in sorted(shipped(folder).rglob("*")):
            inside = PurePosixPath(*file.relative_to(shipped(folder)).parts)
            if file.is_file() and not {"__pycache__", "testcluster"} & set(inside.parts):
                yield f"{package.name}/{folder}/{inside}", file.read_bytes()
    yield _metadata(package.name, truba_runner.__version__)


def _distributions(wanted: Mapping[str, str], folder: Path | None) -> list[Distribution]:
    """Return the packages, installed or downloaded into `folder`; without a folder any installed version is taken."""
    distributions, missing = [], []
    for name, version in wanted.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed is not None and (folder is None or installed.version == version):
            distributions.append(installed)
        else:
            missing.append(f"{name}=={version}")
    if missing and folder is None:
        names = ", ".join(missing)
        raise Failed("not installed here, and a job needs it: {names}. Install it with pip.", names=names)
    if missing and folder is not None:
        _fetch(missing, folder)
        distributions += [one for one in importlib.metadata.distributions(path=[str(folder)])
                  if f"{_name(one)}=={one.version}" in missing]  # fmt: skip
    return distributions


def _fetch(requirements: list[str], folder: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*argv, "--no-compile", "--upgrade", "--target", str(folder), *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(
            "{names} could not be downloaded for the bundle ({error}). Install these versions, or make the bundle on "
            "a machine with internet access.",
            names=", ".join(requirements),
            error=done.stderr.strip()[-500:],
        )


def _files_of(distribution: Distribution) -> Iterator[tuple[str, bytes]]:
    """Yield a package's source, data and licence; no compiled files, and only minimal metadata."""
    for file in distribution.files or ():
        about, inside = file.parts[0].endswith(".dist-info"), PurePosixPath(*file.parts)
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        if (about and "licen" in str(inside).lower()) or (not about and inside.suffix in _CODE):
            yield str(inside), Path(str(distribution.locate_file(file))).read_bytes()
    yield _metadata(_name(distribution).replace("-", "_"), distribution.version)


def _name(distribution: Distribution) -> str:
    """Return `distribution.name`, which Python 3.9 lacks."""
    return distribution.metadata["Name"]


def _metadata(name: str, version: str) -> tuple[str, bytes]:
    """Return metadata reduced to what importlib.metadata needs; the full text depends on the package's build."""
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return f"{name}-{version}.dist-info/METADATA", text.encode()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    # Before 3.13 Python takes a folder for a namespace package only if it has its own entry.
    folders = {f"{parent}/" for name in files for parent in PurePosixPath(name).parents if str(parent) != "."}
    made = io.BytesIO(b"#!/usr/bin/env python3\n")
    made.seek(0, io.SEEK_END)
    with zipfile.ZipFile(made, "a", zipfile.ZIP_STORED) as bundle:
        for name in sorted([*files, *folders]):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
            bundle.writestr(entry, files.get(name, b""))
    return made.getvalue()
