"""Find, download and verify the files that an experiment needs, before its job is submitted.

Compute nodes have no network, so a job never downloads anything.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from truba_runner.config.schema import Data, Experiment, Source
from truba_runner.config.search_space import jobs
from truba_runner.data import download, hub, hub_names, image_names, weights
from truba_runner.errors import Problem, Refused
from truba_runner.language import _, as_started
from truba_runner.log import print_error
from truba_runner.storage.files import written_whole

# Larger files are verified only when staged, not at every submission.
_LARGEST_CHECKED_BYTES = 64 << 20


def needed(experiment: Experiment) -> list[Source]:
    """Return the files that the run will read: its data and pretrained weights."""
    sources = [experiment.data.sources.get(experiment.data.name), *map(weights.source, jobs(experiment))]
    # Architectures may share a file.
    return list({source.file: source for source in sources if source is not None and source.file}.values())


def missing(experiment: Experiment) -> list[Source]:
    """Return the needed files that are missing from the data folder or damaged."""
    folder = Path(experiment.data.folder)
    return [source for source in needed(experiment) if not _whole(folder / source.file, source)]


def _whole(path: Path, source: Source) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size <= _LARGEST_CHECKED_BYTES and not matches(path, source.sha256):
        print_error("{path} is damaged: its SHA-256 is not the expected one", path=path)
        return False
    return True


def provide(experiment: Experiment, selector: str) -> str:
    """Stage every missing file, and return the name of the data that the run will train on.

    That is `data.name`, or `data.fallback` if a local run can neither find nor download it. `selector` is what the
    user typed to choose the experiment; remedies repeat it.

    Raises:
        truba_runner.errors.Refused: a file is missing and cannot be downloaded, or an image folder has a problem.
    """
    data, name, problems = experiment.data, experiment.data.name, []
    own = data.sources.get(name)
    for source in missing(experiment):
        try:
            stage(Path(data.folder), source, source.url)
        except OSError as error:
            if source is own and experiment.cluster.scheduler == "local" and data.fallback:
                name = data.fallback
            else:
                problems.append(_missing_problem(experiment, source, selector, error))
    problems += _without_hub(data, selector)
    if own is not None and own.folder:
        problems += folder_problems(data, own)
    if problems:
        raise Refused(*problems)
    return name


def _without_hub(data: Data, selector: str) -> Iterator[Problem]:
    """Fetch the repositories that are missing, and yield a Problem for each that cannot be fetched."""
    for asset in hub.missing(data):
        try:
            hub.fetch(asset, Path(data.folder) / hub_names.FOLDER)
        except OSError as error:
            rule = _(
                "it is not in {folder}, and the download failed ({error}); compute nodes have no internet access to "
                "download it.",
                folder=Path(data.folder) / hub_names.FOLDER,
                error=error,
            )
            command = as_started(f"python -m truba_runner stage {selector} data.folder=FOLDER")
            remedy = _(
                "Where there is internet access, type {command} and copy FOLDER/{hub} here, into {folder}.",
                command=command,
                hub=hub_names.FOLDER,
                folder=data.folder,
            )
            yield Problem(f"data.hub={asset}", rule, remedy)


def stage(folder: Path, source: Source, origin: str) -> Path:
    """Copy or download a file into the data folder from a URL or a path; verify it, then rename it into place.

    Raises:
        OSError: the file cannot be read, downloaded or written, or has the wrong SHA-256.
    """
    if not origin:
        raise OSError(_("it has no address that a program could download it from"))
    path = folder / source.file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with written_whole(path, durable=False) as file:
        if "://" in origin:
            download.save(origin, file)
        else:
            with open(origin, "rb") as original:
                shutil.copyfileobj(original, file, download.CHUNK_BYTES)
        file.flush()
        if not matches(Path(file.name), source.sha256):
            raise OSError(
                _("{file} is not the expected file: its SHA-256 is not {sha256}", file=origin, sha256=source.sha256)
            )
    return path


def matches(path: Path, sha256: str) -> bool:
    """Whether a file's SHA-256 begins with the given one; True if that is empty."""
    return not sha256 or _sha256(path).startswith(sha256)


def folder_problems(data: Data, source: Source) -> Iterator[Problem]:
    """Yield a Problem if an image folder is missing or empty, or a name in it has no label. Opens no image."""
    folder, received = Path(data.folder) / source.folder, f"data.name={data.name}"
    if not folder.is_dir():
        rule = _("there is no folder {folder}.", folder=folder)
        yield Problem(received, rule, _("Put the images there, or set data.folder."))
    elif not (names := image_names.names_in(folder)):
        rule = _("there are no images in {folder} or its subfolders.", folder=folder)
        yield Problem(received, rule, _("Put the images there."))
    elif data.label_pattern and (problem := image_names.unlabelled(names, data.label_pattern)):
        yield problem


def _missing_problem(experiment: Experiment, source: Source, selector: str, error: OSError) -> Problem:
    data = experiment.data
    job = next((job for job in jobs(experiment) if weights.source(job) == source), experiment.job)
    path = Path(data.folder) / source.file
    received, chosen = f"data.name={data.name}", ""
    remedy = _("Download {url} on a machine with internet access, copy it here, and type: {command}")
    if source.file.startswith(f"{weights.FOLDER}/"):
        received, chosen = "job.options.pretrained=true", f" job.options.arch={job.options.get('arch')}"
        remedy = _(
            "Download {url} on a machine with internet access, copy it here, and type: {command}; or set "
            "job.options.pretrained=false to train from scratch"
        )
    command = as_started(f"python -m truba_runner stage {selector}{chosen} --from {path.name}")
    return Problem(
        received,
        _(
            "{path} does not exist, and the download failed ({error}); compute nodes have no internet access to "
            "download it.",
            path=path,
            error=error,
        ),
        remedy.format(url=source.url or source.page, command=command),
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(download.CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
