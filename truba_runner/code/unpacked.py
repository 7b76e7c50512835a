"""A job's side of `snapshot`: the code of a submission, unpacked on the node for as long as a process trains it."""

from __future__ import annotations

import os
import platform
import secrets
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from truba_runner.code import job_module, provenance, snapshot
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.storage import node_folder


def sha256(record: Mapping[str, Any]) -> str:
    """Of the job file that a start finds; `record`: the submission's."""
    if "code" in record:
        return str(record["job_sha256"])
    return provenance.code_sha256(Path(record.get("job_file", "")))


# Makes a folder that goes at the end of its `with`.
_Place = Callable[[Path], AbstractContextManager[str | Path]]


class SubmittedCode:
    """Where a process has its training code from. What was unpacked goes at the end of the `with`."""

    def __init__(self) -> None:
        """Nothing is unpacked before `load`."""
        self._at_the_end = ExitStack()
        self._project = self._unpacked = ""

    def __enter__(self) -> SubmittedCode:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Removes what was unpacked."""
        self._at_the_end.close()

    def load(self, record: Mapping[str, Any], scratch: Path) -> ModuleType:
        """Imports the job module of a submission, whose `record` this is; `scratch` is the node's own disk.

        Raises:
            Failed: the code has gone since it was submitted, or finds no room on the node.
            Exception: whatever the module raises when it is imported.
        """
        job_file = Path(record["job_file"])
        if "code" not in record:
            return job_module.load(job_file)
        project = Path(record["project"])
        # In a folder of its own name: the one above it may come to be importable from, and has to be private.
        code = self._written(snapshot.unpacked(record["code"]), scratch, project.name or "project")
        with suppress(OSError):  # Of a run that is started again and again for weeks it must not be purged.
            os.utime(record["code"]["archive"])
        self._project, self._unpacked = str(project), str(code)
        _link_the_rest(project, code)
        return job_module.load(code / job_file.relative_to(project))

    def own(self, text: str) -> str:
        """A text that names files as the user knows them."""
        return text.replace(self._unpacked, self._project) if self._unpacked else text

    def _written(self, files: Mapping[str, snapshot.File], scratch: Path, name: str) -> Path:
        """The folder `name` with the files: on the node's own disk, or where that takes none, among temporary files.

        Raises:
            Failed: there is room for them in neither.
        """
        refused = []
        places: tuple[_Place, ...] = (_on_the_node, _among_temporary_files)
        for make in places:
            with ExitStack() as attempt:
                folder = scratch
                try:
                    folder = Path(attempt.enter_context(make(scratch))) / name
                    _write(files, folder)
                except OSError as error:
                    refused.append(f"{folder}: {error.strerror}")
                    continue
                self._at_the_end = attempt.pop_all()
                return folder
        raise Failed(
            _(
                "the code that was submitted could not be unpacked on {node} ({why}). That is the node's own disk, and "
                "no fault of the run's. Submit again, and tell the site's support of the node; with "
                "code.snapshot=false nothing is unpacked, and the project's files are read as they are.",
                node=platform.node(),
                why="; ".join(refused),
            )
        )


def _on_the_node(scratch: Path) -> AbstractContextManager[Path]:
    return node_folder.made(scratch, f"code-{secrets.token_hex(4)}")


def _among_temporary_files(scratch: Path) -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="truba-code-", ignore_cleanup_errors=True)


def _write(files: Mapping[str, snapshot.File], folder: Path) -> None:
    folder.mkdir()
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        if file.executable:
            path.chmod(0o700)


def _link_the_rest(project: Path, code: Path) -> None:
    """What was not taken along, such as data that git ignores, is found beside the code as it is in the project."""
    for path, folders, names in os.walk(code):
        beside = project / Path(path).relative_to(code)
        with suppress(OSError):  # Where compute nodes do not see it, the code may do without.
            # Python would leave there what it has compiled of the submitted code.
            rest = sorted(set(os.listdir(beside)) - {*folders, *names, "__pycache__"})
            for name in rest:
                os.symlink(_target(beside / name, project, code), Path(path) / name)
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(path, name))]


def _target(path: Path, project: Path, code: Path) -> Path:
    """Of a link to a folder whose files were taken along, that folder as it was."""
    real = path.resolve()
    if path.is_symlink() and real.is_relative_to(project):
        taken = code / real.relative_to(project)
        return taken if taken.exists() else real
    return path
