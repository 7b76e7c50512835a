"""Provide this package to jobs, as one archive in the runs folder, named by its content's hash.

A job imports the package from there if its Python is not the submitting one, or if it was submitted from a bundle,
which may be replaced while the job waits. The shell wrapper of a container is in the same folder.
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
    """Return the files that a job in this environment needs, as path -> content."""
    needed = {}
    if truba_runner.ARCHIVE or environment.kind != "inherit":
        needed[archive(runs_folder)] = _content()
    if environment.kind == "apptainer":
        needed[wrapper(runs_folder)] = _wrapper_content()
    return needed


def provide(environment: Environment, runs_folder: Path) -> None:
    """Write missing files; renew the times of existing ones, so that the site does not purge them as old.

    Raises:
        truba_runner.errors.Refused: another user owns the folder of these files or can write to it.
    """
    for path, content in files(environment, runs_folder).items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.require_own(path.parent)
        try:
            os.utime(path)
        except FileNotFoundError:
            write_atomically(path, content)


def archive(runs_folder: Path) -> Path:
    """Return the path of the package's archive."""
    return runs_folder / CODE / f"truba-{_name(_content())}.pyz"


def wrapper(runs_folder: Path) -> Path:
    """Return the path of the container wrapper."""
    return runs_folder / CODE / f"apptainer-{_name(_wrapper_content())}"


def setup(environment: Environment, runs_folder: Path) -> list[str]:
    """Return shell lines by which the job's Python finds the package; none if it is installed for that Python."""
    root = Path(truba_runner.__file__).resolve().parent.parent
    needed = files(environment, runs_folder)
    if archive(runs_folder) in needed:
        root = archive(runs_folder)
    elif not (root / "pyproject.toml").is_file():
        return []
    # PYTHONPATH is passed into the container, where the host's own entries do not belong.
    more = "" if environment.kind == "apptainer" else f"${{PYTHONPATH:+{os.pathsep}$PYTHONPATH}}"
    found = f"export PYTHONPATH={shlex.quote(str(root))}{more}"
    if not needed:
        return [found]
    checked = [_unchanged(path, content) for path, content in needed.items()]
    # The site must not purge the files of a job that is restarted for weeks.
    return [f"touch --no-create {shlex.join(map(str, needed))}", *checked, found]


def _unchanged(path: Path, content: bytes) -> str:
    """Return a shell line that ends the job if a file that it is about to execute has changed since submission."""
    message = _(
        "{path} has changed since this job was submitted: submit again; the run resumes from its last checkpoint",
        path=path,
    )
    same = f'[ "$(sha256sum < {shlex.quote(str(path))})" = "{hashlib.sha256(content).hexdigest()}  -" ]'
    return f"{same} || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


@lru_cache(maxsize=1)
def _content() -> bytes:
    return bundle.content(pinned=False)


@lru_cache(maxsize=1)
def _wrapper_content() -> bytes:
    return (shipped("container") / "apptainer").read_bytes()


@lru_cache(maxsize=2)
def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
