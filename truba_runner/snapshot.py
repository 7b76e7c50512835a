"""The user's code as it is when it is submitted: one archive in the runs folder, named after what it holds.

A job trains what lies in there (submitted_code.py), whatever has been edited while it waited. Submissions of the same
files share an archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.rundir import CODE, write_atomically

if TYPE_CHECKING:
    from truba_runner.config import Experiment

_GIT_TIMEOUT_SECONDS = 5
_MB = 1e6
_NAMED = 5


@dataclass(frozen=True)
class File:
    """A file of the project."""

    content: bytes
    executable: bool


@dataclass(frozen=True)
class Taken:
    """What was taken along of a project."""

    archive: Path
    sha256: str
    files: int
    # Of the job's own file, as the archive has it.
    job_sha256: str

    def record(self) -> dict[str, Any]:
        """For a submission's record."""
        code = {"archive": str(self.archive), "sha256": self.sha256, "files": self.files}
        return {"code": code, "job_sha256": self.job_sha256}


def refuse_too_much(experiment: Experiment, job_file: Path) -> None:
    """Holds back what `take` would refuse, before anything is on record.

    Raises:
        Refused: the project's files are larger than `code.max_mb`.
    """
    if _applies(experiment, job_file):
        _refuse_too_much(Path.cwd(), job_file, left_out(_folders(experiment)), experiment.code.max_mb)


def take(experiment: Experiment, job_file: Path) -> Taken | None:
    """Puts the project's files into their archive; None where the job reads them where they are.

    That is on this machine, with `code.snapshot=false`, and for a job that is not the project's own. Within one process
    it is done once: the runs of a sweep, in however many job arrays, have the same code.

    Raises:
        Refused: they are larger than `code.max_mb`.
        Failed: the job's own file cannot be read.
    """
    if not _applies(experiment, job_file):
        return None
    folders, runs_folder = _folders(experiment), Path(experiment.cluster.runs_folder)
    return _taken(Path.cwd(), job_file, left_out(folders), runs_folder, experiment.code.max_mb)


def _applies(experiment: Experiment, job_file: Path) -> bool:
    on_slurm = experiment.cluster.scheduler == "slurm"
    return on_slurm and experiment.code.snapshot and job_file.is_relative_to(Path.cwd())


def _folders(experiment: Experiment) -> tuple[str, str]:
    return experiment.cluster.runs_folder, experiment.data.folder


def left_out(folders: Sequence[str]) -> tuple[Path, ...]:
    """Of a config's `cluster.runs_folder` and `data.folder`, what is never code, wherever it lies."""
    return tuple(Path(folder) for folder in folders)


# -- which files -------------------------------------------------------------------------------------------------


def files(project: Path, job_file: Path, without: Sequence[Path]) -> dict[str, Path]:
    """The project's files by their paths in it, sorted; `without` are folders that are left out.

    With git: those that are tracked, and those that are neither tracked nor ignored. Without: top-level `*.py`, all of
    `jobs/` and `conf/`, and the `*.py` of other folders that have some. Links to files are followed, unless they leave
    the project.
    """
    outside = [folder for folder in without if folder != project and folder.is_relative_to(project)]
    own = str(job_file.relative_to(project))
    found = _by_git(project)
    if own not in found:  # There is no git here, or it was told to ignore the job.
        found = _by_name(project, own)
    real = project.resolve()
    named = {name: project / name for name in sorted(found)}
    return {
        name: path
        for name, path in named.items()
        if path.is_file()
        and not any(path.is_relative_to(folder) for folder in outside)
        and (not path.is_symlink() or path.resolve().is_relative_to(real))
    }


def _by_git(folder: Path) -> set[str]:
    argv = ["git", "-C", str(folder), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(argv, capture_output=True, timeout=_GIT_TIMEOUT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    found = set()
    for name in filter(None, os.fsdecode(listed).split("\0")):
        inner = folder / name
        if inner.is_dir() and not inner.is_symlink():  # A repository of its own, such as a submodule.
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
def _refuse_too_much(project: Path, job_file: Path, without: tuple[Path, ...], max_mb: float) -> None:
    sizes = {}
    for name, path in files(project, job_file, without).items():
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
                "its {count} files come to {size:.1f} MB, and a submission takes at most code.max_mb={most:g} along; "
                "the largest are {files}.",
                count=len(sizes),
                size=sum(sizes.values()) / _MB,
                most=max_mb,
                files=named,
            ),
            _(
                "Name what is no code in .gitignore, or set a larger code.max_mb; with code.snapshot=false the job "
                "reads the files as they are when it starts."
            ),
        )
    )


# -- the archive -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _taken(project: Path, job_file: Path, without: tuple[Path, ...], runs_folder: Path, max_mb: float) -> Taken:
    _refuse_too_much(project, job_file, without, max_mb)
    found = read(files(project, job_file, without))
    own = found.get(str(job_file.relative_to(project)))
    if own is None:
        raise Failed(_("{file} cannot be read any more", file=job_file))
    digest = _digest(found)
    archive = runs_folder / CODE / f"code-{digest[:16]}.tar.gz"
    try:
        # To a purge, which takes what nobody has written to for long, it is as new as its newest submission.
        os.utime(archive)
    except FileNotFoundError:
        archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(archive, _packed(found))
    return Taken(archive, digest, len(found), hashlib.sha256(own.content).hexdigest())


def read(paths: Mapping[str, Path]) -> dict[str, File]:
    """Their contents; without those that have gone meanwhile, or may not be read."""
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
    # A zip has no room for names that are no UTF-8.
    whole = io.BytesIO()
    with gzip.GzipFile(fileobj=whole, mode="wb", compresslevel=1, mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w") as tar:
            for name, file in found.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(file.content), 0o700 if file.executable else 0o600
                tar.addfile(member, io.BytesIO(file.content))
    return whole.getvalue()


def unpacked(code: Mapping[str, Any]) -> dict[str, File]:
    """What was taken along; `code` is what `Taken.record` calls so.

    Raises:
        Failed: the archive is not there any more, or is damaged.
    """
    found = {}
    archive = Path(code["archive"])
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    found[member.name] = File(content.read(), bool(member.mode & 0o100))
        # gzip looks at its own checksum only where it is read to its very end.
        if _digest(found) != code["sha256"]:
            raise ValueError("SHA-256")
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        gone = isinstance(error, FileNotFoundError)
        raise Failed(
            _(
                "the code that was submitted cannot be read: {archive}: {why}. Submit the run again: it goes on from "
                "its last checkpoint, with the project's files as they are now.",
                archive=archive,
                why=_("it is not there any more") if gone else _("it is damaged ({error})", error=error),
            )
        ) from error
    return found


def shown(name: str) -> str:
    """A file's name for a terminal, which may not take one that is no UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
