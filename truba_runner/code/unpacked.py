"""Unpack a submission's snapshot on the node, for as long as a process of the job trains with it."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType

from truba_runner.code import job_module, provenance, snapshot
from truba_runner.errors import Failed
from truba_runner.runs.events import Event
from truba_runner.storage import node_folder


def sha256(record: Event) -> str:
    """Return the SHA-256 of the job file that a start will load, given the submission record."""
    return record.job_sha256 if record.code else provenance.code_sha256(Path(record.job_file))


# Makes a context manager for a folder that is removed at its exit.
_Place = Callable[[Path], AbstractContextManager[Path]]


class SubmittedCode:
    """Context manager that loads a process's training code, and removes the unpacked files at its exit."""

    def __init__(self) -> None:
        """Unpack nothing yet; `load` does."""
        self._at_the_end = ExitStack()
        self._project = self._unpacked = ""

    def __enter__(self) -> SubmittedCode:
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the unpacked files."""
        self._at_the_end.close()

    def load(self, record: Event, scratch: Path) -> ModuleType:
        """Import the job module of a submission, given its `record`; `scratch` is a folder on the node's local disk.

        Raises:
            Failed: the submitted code is gone or damaged, or could not be unpacked on the node.
            Exception: any exception that the module raises on import.
        """
        job_file, project = Path(record.job_file), Path(record.project)
        if not record.code:
            return job_module.load(job_file)
        # In a subfolder named like the project: job_module.load may put the private folder above it on sys.path.
        code = self._written(snapshot.unpacked(record.code), scratch, project.name or "project")
        with suppress(OSError):  # The site must not purge the archive of a run that is restarted for weeks.
            os.utime(record.code["archive"])
        self._project, self._unpacked = str(project), str(code)
        _link_the_rest(project, code)
        return job_module.load(code / job_file.relative_to(project))

    def own(self, text: str) -> str:
        """Replace paths of unpacked files in a text by those in the user's project."""
        return text.replace(self._unpacked, self._project) if self._unpacked else text

    def _written(self, files: Mapping[str, snapshot.File], scratch: Path, name: str) -> Path:
        """Write the files into a folder `name` on the node's local disk or, if that fails, in the temporary folder.

        Raises:
            Failed: neither could be written.
        """
        refused = []
        places: tuple[_Place, ...] = (_on_the_node, _among_temporary_files)
        for make in places:
            with ExitStack() as attempt:
                folder = scratch
                try:
                    folder = attempt.enter_context(make(scratch)) / name
                    _write(files, folder)
                except OSError as error:
                    refused.append(f"{folder}: {error.strerror}")
                    continue
                self._at_the_end = attempt.pop_all()
                return folder
        raise Failed(
            "the submitted code could not be unpacked on {node} ({why}). The cause is the node's local disk, not the "
            "run. Submit again, and report the node to the site's support; with code.snapshot=false nothing is "
            "unpacked, and the job reads the project's files as they are.",
            node=platform.node(),
            why="; ".join(refused),
        )


def _on_the_node(scratch: Path) -> AbstractContextManager[Path]:
    return node_folder.made(scratch, f"code-{secrets.token_hex(4)}")


@contextmanager
def _among_temporary_files(scratch: Path) -> Iterator[Path]:
    """Create a temporary folder and remove it, ignoring errors: Python 3.9's TemporaryDirectory cannot ignore them."""
    folder = Path(tempfile.mkdtemp(prefix="truba-code-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(files: Mapping[str, snapshot.File], folder: Path) -> None:
    folder.mkdir()
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        if file.executable:
            path.chmod(0o700)


def _link_the_rest(project: Path, code: Path) -> None:
    """Link files that the snapshot lacks, such as data that git ignores, from the project into the unpacked code."""
    for path, folders, names in os.walk(code):
        beside = project / Path(path).relative_to(code)
        with suppress(OSError):  # Compute nodes may not see the project; the code may not need it.
            # Through a link Python would write bytecode of the snapshot into the project.
            rest = sorted(set(os.listdir(beside)) - {*folders, *names, "__pycache__"})
            for name in rest:
                os.symlink(_target(beside / name, project, code), Path(path) / name)
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(path, name))]


def _target(path: Path, project: Path, code: Path) -> Path:
    """Return what a link to `path` should point at: the unpacked copy if `path` is a symlink to something in it."""
    real = path.resolve()
    if path.is_symlink() and real.is_relative_to(project):
        taken = code / real.relative_to(project)
        return taken if taken.exists() else real
    return path
