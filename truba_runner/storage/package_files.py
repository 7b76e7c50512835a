"""The package's own files that are no modules: its configs, its jobs, and what runs in a job's shell."""

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
    """Where one of `FOLDERS` lies: in an installed wheel, beside the package in a checkout, unpacked of a bundle."""
    if truba_runner.ARCHIVE:
        return _unpacked(Path(truba_runner.ARCHIVE)) / folder
    package = Path(truba_runner.__file__).resolve().parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


@lru_cache(maxsize=1)
def _unpacked(archive: Path) -> Path:
    """These files of a bundle, a few dozen, in a folder that is named after what they hold.

    Hydra, the jobs' own imports and a shell all want files; the folder is shared by every bundle that has the same.
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
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        for name in names:
            file = beside / _within(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bundle.read(name))
            # To be copied, not edited: the same name promises the same content.
            file.chmod(0o444)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(beside, folder)
    except OSError:  # Another command was quicker.
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _is_data(name: str) -> bool:
    return name.startswith(tuple(f"truba_runner/{folder}/" for folder in FOLDERS)) and not name.endswith("/")


def _within(name: str) -> str:
    return name.removeprefix("truba_runner/")
