"""Refuse names and paths that are too long for a file system. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem
from truba_runner.language import _

# NAME_MAX and PATH_MAX of Linux, in bytes.
_NAME_BYTES, _PATH_BYTES = 255, 4096
# Reserved for what a run's directory appends to the name (hash and suffix), and for the paths of files in it.
_BEHIND_NAME_BYTES, _WITHIN_BYTES = 55, 500


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report names and paths that are too long."""
    most = _NAME_BYTES - _BEHIND_NAME_BYTES
    for key, name in (("name", experiment.name), ("sweep.directory", experiment.sweep.directory)):
        if len(name.encode(errors="replace")) > most:
            rule = _(
                "a file name may have at most {most} bytes, and the file names made from this one would be longer.",
                most=_NAME_BYTES,
            )
            yield Problem(_short(key, name), rule, _("Choose a name of at most {most} letters.", most=most))
    for key, path in (
        ("cluster.runs_folder", experiment.cluster.runs_folder),
        ("data.folder", experiment.data.folder),
        ("environment.venv", experiment.environment.venv),
        ("environment.image", experiment.environment.image),
    ):
        longest = max(len(part.encode(errors="replace")) for part in path.split("/"))
        if longest > _NAME_BYTES or len(path.encode(errors="replace")) > _PATH_BYTES - _WITHIN_BYTES:
            rule = _(
                "a path may have at most {most} bytes, and each name in it at most {each}.",
                most=_PATH_BYTES - _WITHIN_BYTES,
                each=_NAME_BYTES,
            )
            yield Problem(_short(key, path), rule, _("Choose a shorter one."))


def _short(key: str, value: str) -> str:
    return f"{key}={value[:40]}… ({len(value)})"
