"""Archive the user's project at submission: one file in the runs folder, named by its content's hash.

A job trains with the archived code (unpacked.py), so later edits do not affect it. Submissions of the same files share
an archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truba_runner.code import git, secret_files
from truba_runner.errors import Failed, Problem, Refused, listed
from truba_runner.language import _
from truba_runner.runs.run_directory import CODE
from truba_runner.storage import private
from truba_runner.storage.files import write_atomically

if TYPE_CHECKING:
    from truba_runner.config.schema import Experiment

_MB = 1e6
_NAMED = 5


@dataclass(frozen=True)
class File:
    """Content of a file of the project."""

    content: bytes
    executable: bool


@dataclass(frozen=True)
class Taken:
    """A snapshot of a project."""

    archive: Path
    sha256: str
    files: int
    # Hash of the archived job file.
    job_sha256: str

    def record(self) -> dict[str, Any]:
        """Return the fields for the submission record."""
        code = {"archive": str(self.archive), "sha256": self.sha256, "files": self.files}
        return {"code": code, "job_sha256": self.job_sha256}


def refuse_too_much(experiment: Experiment, job_file: Path) -> None:
    """Refuse a project that `take` would refuse, before anything is recorded.

    Raises:
        Refused: the project's files are larger than `code.max_mb`.
    """
    if _applies(experiment, job_file):
        _refuse_too_much(Path.cwd(), job_file, left_out(_folders(experiment)), *_wanted(experiment))


def take(experiment: Experiment, job_file: Path) -> Taken | None:
    """Archive the project's files; None if the job reads them from the project folder.

    None on this machine, with `code.snapshot=false`, and for a job module outside the project. Cached within a process,
    so that all runs of a sweep, in however many job arrays, have the same code.

    Raises:
        Refused: the files are larger than `code.max_mb`.
        Failed: the job file cannot be read.
    """
    if not _applies(experiment, job_file):
        return None
    folders, runs_folder = _folders(experiment), Path(experiment.cluster.runs_folder)
    return _taken(Path.cwd(), job_file, left_out(folders), runs_folder, *_wanted(experiment))


def _wanted(experiment: Experiment) -> tuple[float, tuple[str, ...]]:
    """Return `code.max_mb` and `code.include`."""
    return experiment.code.max_mb, tuple(map(str, experiment.code.include))


def _applies(experiment: Experiment, job_file: Path) -> bool:
    on_slurm = experiment.cluster.scheduler == "slurm"
    return on_slurm and experiment.code.snapshot and job_file.is_relative_to(Path.cwd())


def _folders(experiment: Experiment) -> tuple[str, str]:
    return experiment.cluster.runs_folder, experiment.data.folder


def left_out(folders: Sequence[str]) -> tuple[Path, ...]:
    """Return the folders to exclude from the snapshot, given a config's `cluster.runs_folder` and `data.folder`."""
    return tuple(Path(folder) for folder in folders)


# -- which files -------------------------------------------------------------------------------------------------


def files(project: Path, job_file: Path, without: Sequence[Path], include: Iterable[str] = ()) -> dict[str, Path]:
    """Return the project's files by relative path, sorted, except those in folders of `without`.

    Files that look like secrets are left out too, unless `include` names them.

    With git: tracked files, and untracked ones that are not ignored. Without git, or if git ignores the job: top-level
    `*.py`, all of `jobs/` and `conf/`, and all `*.py` of other folders that have some at their top. Links to files are
    followed, unless they lead out of the project.
    """
    outside = [folder for folder in without if folder != project and folder.is_relative_to(project)]
    own = str(job_file.relative_to(project))
    found = _by_git(project)
    if own not in found:  # No git here, or git ignores the job.
        found = _by_name(project, own)
    every = _files(project, sorted(found), outside)
    secret = secret_files.found(every.items(), include)
    return {name: path for name, path in every.items() if name not in secret or name == own}


def secrets_of(project: Path, job_file: Path, without: Sequence[Path], include: Iterable[str]) -> list[str]:
    """Return the names that `files` leaves out because they look like secrets."""
    taken = files(project, job_file, without, include)
    return [name for name in files(project, job_file, without, ["*"]) if name not in taken]


def _files(project: Path, found: Sequence[str], outside: Sequence[Path]) -> dict[str, Path]:
    """Keep the names that are files inside the project and in no folder of `outside`."""
    real = project.resolve()
    named = {name: project / name for name in found}
    return {
        name: path
        for name, path in named.items()
        if path.is_file()
        and not any(path.is_relative_to(folder) for folder in outside)
        and (not path.is_symlink() or path.resolve().is_relative_to(real))
    }


def _by_git(folder: Path) -> set[str]:
    names = git.output(folder, "ls-files", "-z", "-co", "--exclude-standard") or b""
    found = set()
    for name in filter(None, os.fsdecode(names).split("\0")):
        inner = folder / name
        if inner.is_dir() and not inner.is_symlink():  # A nested repository, such as a submodule.
            found |= {f"{name.rstrip('/')}/{more}" for more in _by_git(inner)} if (inner / ".git").exists() else set()
        else:
            found.add(name)
    return found


def _by_name(project: Path, job: str) -> set[str]:
    found = {job, *(path.name for path in project.glob("*.py"))}
    whole = {"jobs", "conf"}
    for folder in sorted(project.iterdir()):
        if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        holds_the_job = "/" in job and folder.name == job.split("/")[0]
        if folder.name in whole or holds_the_job or any(folder.glob("*.py")):
            every = (path.relative_to(project) for path in _walked(folder))
            found |= {str(path) for path in every if folder.name in whole or path.suffix == ".py"}
    return found


def _walked(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(path) / name for name in names)


@lru_cache(maxsize=8)
def _refuse_too_much(
    project: Path, job_file: Path, without: tuple[Path, ...], max_mb: float, include: tuple[str, ...]
) -> None:
    sizes = {}
    for name, path in files(project, job_file, without, include).items():
        with suppress(OSError):
            sizes[name] = path.stat().st_size
    if sum(sizes.values()) <= max_mb * _MB:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
    named = ", ".join(f"{shown(name)} ({sizes[name] / _MB:.1f} MB)" for name in largest)
    raise Refused(
        Problem(
            _("the code in {folder}", folder=project),
            _(
                "its {count} files have {size:.1f} MB, and a submission copies at most code.max_mb={most:g}; the "
                "largest are {files}.",
                count=len(sizes),
                size=sum(sizes.values()) / _MB,
                most=max_mb,
                files=named,
            ),
            _(
                "List the files that are not code in .gitignore, or set a larger code.max_mb; with "
                "code.snapshot=false the job reads the project's files as they are when it starts."
            ),
        )
    )


# -- the archive -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _taken(
    project: Path,
    job_file: Path,
    without: tuple[Path, ...],
    runs_folder: Path,
    max_mb: float,
    include: tuple[str, ...],
) -> Taken:
    _refuse_too_much(project, job_file, without, max_mb, include)
    _say_secrets(secrets_of(project, job_file, without, include))
    contents = read(files(project, job_file, without, include))
    own = contents.get(str(job_file.relative_to(project)))
    if own is None:
        raise Failed("{file} cannot be read any more", file=job_file)
    digest = _digest(contents)
    archive = runs_folder / CODE / f"code-{digest[:16]}.tar.gz"
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.require_own(archive.parent)
    try:
        # A site purges files that were not written to for long: make the archive as new as its newest submission.
        os.utime(archive)
    except FileNotFoundError:
        write_atomically(archive, _packed(contents))
    return Taken(archive, digest, len(contents), hashlib.sha256(own.content).hexdigest())


def _say_secrets(names: Sequence[str]) -> None:
    if names:
        message = _(
            "not copied with the submitted code, as they look like secrets: {files}. A job reads them from the "
            "project, if its node can access it; code.include=[{first}] copies one with the code.",
            files=listed([shown(name) for name in names]),
            first=shown(names[0]),
        )
        print(message, file=sys.stderr)


def read(paths: Mapping[str, Path]) -> dict[str, File]:
    """Read the files, without those that are gone or unreadable."""
    found = {}
    for name, path in paths.items():
        with suppress(OSError):
            found[name] = File(path.read_bytes(), os.access(path, os.X_OK))
    return found


def _digest(found: Mapping[str, File]) -> str:
    digest = hashlib.sha256()
    for name, file in found.items():
        kind = "x" if file.executable else "-"
        digest.update(f"{hashlib.sha256(file.content).hexdigest()} {kind} ".encode() + os.fsencode(name) + b"\0")
    return digest.hexdigest()


def _packed(found: Mapping[str, File]) -> bytes:
    # A zip file could not hold names that are not UTF-8.
    whole = io.BytesIO()
    with gzip.GzipFile(fileobj=whole, mode="wb", compresslevel=1, mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w") as tar:
            for name, file in found.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(file.content), 0o700 if file.executable else 0o600
                tar.addfile(member, io.BytesIO(file.content))
    return whole.getvalue()


def unpacked(code: Mapping[str, Any]) -> dict[str, File]:
    """Read the files of a snapshot; `code` is the field of this name from `Taken.record`.

    Raises:
        Failed: the archive no longer exists, or is damaged.
    """
    found = {}
    archive = Path(code["archive"])
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    found[member.name] = File(content.read(), bool(member.mode & 0o100))
        # gzip verifies its own checksum only when it is read to the very end.
        if _digest(found) != code.get("sha256"):
            raise ValueError("SHA-256")
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        gone = isinstance(error, FileNotFoundError)
        raise Failed(
            "the submitted code cannot be read: {archive}: {why}. Submit the run again: it resumes from its last "
            "checkpoint, with the project's files as they are now.",
            archive=archive,
            why=_("it is not there any more") if gone else _("it is damaged ({error})", error=error),
        ) from error
    return found


def shown(name: str) -> str:
    """Format a file's name for a terminal, escaping bytes that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
