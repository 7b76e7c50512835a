"""Where an experiment's data files come from: the data folder, or a download, made before the job is submitted.

Compute nodes have no network, so nothing is ever fetched by a job.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

from truba_runner.config import Data, Experiment, Source
from truba_runner.errors import Problem, Refused

DOWNLOAD_TIMEOUT_SECONDS = 10
_CHUNK_BYTES = 1 << 20
# A larger file is checked when it is staged, not at every submission.
_LARGEST_CHECKED_BYTES = 64 << 20


def missing(data: Data) -> Source | None:
    """The file that `data` needs and the data folder lacks (or holds damaged); None where nothing is missing."""
    source = data.sources.get(data.name)
    if source is None or not source.file:
        return None
    path = Path(data.folder) / source.file
    if not path.is_file():
        return source
    if source.sha256 and path.stat().st_size <= _LARGEST_CHECKED_BYTES and _sha256(path) != source.sha256:
        print(f"{path} is damaged: its SHA-256 is not the expected one", file=sys.stderr)
        return source
    return None


def provide(experiment: Experiment, selector: str) -> str:
    """Sees to it that the data is there, and returns the name of the data that the run will train on.

    That is `data.name`, or, on a local run that can neither find nor download it, `data.fallback`.
    `selector` is what the user typed to choose the experiment; a remedy repeats it.

    Raises:
        Refused: the data is missing and can't be fetched.
    """
    data = experiment.data
    source = missing(data)
    if source is None:
        return data.name
    try:
        stage(data, source.url)
    except OSError as error:
        if experiment.cluster.scheduler == "local" and data.fallback:
            return data.fallback
        raise Refused(_missing_problem(data, source, selector, error)) from error
    return data.name


def stage(data: Data, origin: str) -> Path:
    """Puts the file that `data` needs into the data folder, from a URL or a path, checked and renamed into place.

    Raises:
        OSError: it can't be read, fetched or written, or is not the file that it should be.
    """
    source = data.sources[data.name]
    if not origin:
        raise OSError("it has no address that a program could fetch it from")
    folder = Path(data.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{source.file}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if "://" in origin:
                request = urllib.request.Request(origin, headers={"User-Agent": "truba_runner"})
                with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
                    shutil.copyfileobj(answer, file, _CHUNK_BYTES)
            else:
                with open(origin, "rb") as original:
                    shutil.copyfileobj(original, file, _CHUNK_BYTES)
        if source.sha256 and _sha256(Path(beside)) != source.sha256:
            raise OSError(f"{origin} is not the expected file: its SHA-256 is not {source.sha256}")
        os.replace(beside, folder / source.file)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return folder / source.file


def _missing_problem(data: Data, source: Source, selector: str, error: OSError) -> Problem:
    return Problem(
        f"data.name={data.name}",
        f"{Path(data.folder) / source.file} is not there, and the download failed ({error}); a compute node has no "
        "network to fetch it.",
        f"Fetch {source.url or source.page} on a machine that can, copy it here, and type: "
        f"python -m truba_runner stage {selector} --from {source.file}",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
