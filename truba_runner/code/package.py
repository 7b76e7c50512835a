"""The package as a job finds it: one archive in the runs folder, named after what it holds.

A job whose Python is not the one that submits imports the package from there; so does one that was submitted from a
bundle, which may be replaced while the job waits. The shell wrapper of a container lies beside it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import truba_runner
from truba_runner.code import bundle
from truba_runner.config.schema import Environment
from truba_runner.language import _
from truba_runner.runs.run_directory import CODE
from truba_runner.storage import private
from truba_runner.storage.files import write_atomically
from truba_runner.storage.package_files import shipped


def files(environment: Environment, runs_folder: Path) -> Mapping[Path, bytes]:
    """What must be there for a job in this environment, by path."""
    needed = {}
    if truba_runner.ARCHIVE or environment.kind != "inherit":
        needed[archive(runs_folder)] = _content()
    if environment.kind == "apptainer":
        needed[wrapper(runs_folder)] = _wrapper_content()
    return needed


def provide(environment: Environment, runs_folder: Path) -> None:
    """Writes what is not there yet; to a purge, which takes what nobody has written to for long, the rest is new.

    Raises:
        truba_runner.errors.Refused: their folder is another's, or others can write to it.
    """
    for path, content in files(environment, runs_folder).items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.require_own(path.parent)
        try:
            os.utime(path)
        except FileNotFoundError:
            write_atomically(path, content)


def archive(runs_folder: Path) -> Path:
    """Where the package's archive is to lie."""
    return runs_folder / CODE / f"truba-{_name(_content())}.pyz"


def wrapper(runs_folder: Path) -> Path:
    """Where the wrapper of a container is to lie."""
    return runs_folder / CODE / f"apptainer-{_name(_wrapper_content())}"


def setup(environment: Environment, runs_folder: Path) -> list[str]:
    """Shell that lets the job's Python find the package; nothing where it is installed for that Python."""
    root = Path(truba_runner.__file__).resolve().parent.parent
    needed = files(environment, runs_folder)
    if archive(runs_folder) in needed:
        root = archive(runs_folder)
    elif not (root / "pyproject.toml").is_file():
        return []
    # What the container's own environment has is its own.
    more = "" if environment.kind == "apptainer" else f"${{PYTHONPATH:+{os.pathsep}$PYTHONPATH}}"
    found = f"export PYTHONPATH={shlex.quote(str(root))}{more}"
    if not needed:
        return [found]
    checked = [_unchanged(path, content) for path, content in needed.items()]
    # Of a job that is started again and again for weeks it must not be purged.
    return [f"touch --no-create {shlex.join(map(str, needed))}", *checked, found]


def _unchanged(path: Path, content: bytes) -> str:
    """Shell that ends the job where a file, which it is about to execute, is not what it was when it was submitted."""
    told = _(
        "{path} is not what it was when this job was submitted: submit again; the run goes on from its last checkpoint",
        path=path,
    )
    same = f'[ "$(sha256sum < {shlex.quote(str(path))})" = "{hashlib.sha256(content).hexdigest()}  -" ]'
    return f"{same} || {{ echo {shlex.quote(told)} >&2; exit 1; }}"


@lru_cache(maxsize=1)
def _content() -> bytes:
    return bundle.content(pinned=False)


@lru_cache(maxsize=1)
def _wrapper_content() -> bytes:
    return (shipped("container") / "apptainer").read_bytes()


@lru_cache(maxsize=2)
def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
