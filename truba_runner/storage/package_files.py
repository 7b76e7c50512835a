"""Paths of the package's data files (configs, jobs, shell scripts), also of a package inside a zip file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import truba_runner
from truba_runner.storage.user_state import state_folder

FOLDERS = ("conf", "jobs", "container")


def shipped(folder: str) -> Path:
    """Return the path of one of `FOLDERS`: in a wheel's package, next to a checkout's, or unpacked from a bundle."""
    if truba_runner.ARCHIVE:
        return _unpacked(Path(truba_runner.ARCHIVE)) / folder
    package = Path(truba_runner.__file__).resolve().parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def config_names(group: str) -> set[str]:
    """Return the names of the user's and the package's files in a folder of `conf/`."""
    folders = [folder / group for folder in (Path.cwd() / "conf", shipped("conf"))]
    return {file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")}


@lru_cache(maxsize=1)
def _unpacked(archive: Path) -> Path:
    """Unpack a bundle's data files, a few dozen, into a folder named by their hash, and return the folder.

    Hydra, the jobs' own imports and a shell need real files. Bundles with the same data files share the folder.
    """
    with zipfile.ZipFile(archive) as bundle:
        names = sorted(name for name in bundle.namelist() if _is_data(name))
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {bundle.getinfo(name).CRC}\n".encode())
        folder = state_folder() / "shipped" / digest.hexdigest()[:16]
        if all((folder / _within(name)).is_file() for name in names):
            return folder
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        for name in names:
            file = temporary / _within(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bundle.read(name))
            # Read-only, as the folder's name promises this content.
            file.chmod(0o444)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(temporary, folder)
    except OSError:  # Another command has created the folder.
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_data(name: str) -> bool:
    return name.startswith(tuple(f"truba_runner/{folder}/" for folder in FOLDERS)) and not name.endswith("/")


def _within(name: str) -> str:
    return name.removeprefix("truba_runner/")
