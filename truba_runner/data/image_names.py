"""Photographs by their names: which there are, in an order that is the same everywhere, and the label in each name.

Names alone: nothing is opened, so a login node can look at them too.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from truba_runner.errors import Failed, Problem
from truba_runner.language import _

# What fastai's get_image_files takes for an image.
EXTENSIONS = {suffix for suffix, kind in mimetypes.types_map.items() if kind.startswith("image/")}


def is_image(name: PurePosixPath) -> bool:
    """Whether get_image_files would take a file of this name, relative to the folder that it is asked for."""
    return name.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in name.parts)


def names_in(folder: Path) -> list[PurePosixPath]:
    """The images under a folder, relative to it, in order: a folder's own order differs from disk to disk.

    A split by seed would then put other images into validation, and a resumed run would be tested on what it was
    trained on.
    """
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(here) / name)]
        inside = PurePosixPath(Path(here).relative_to(folder).as_posix())
        found += [inside / name for name in files if is_image(PurePosixPath(name))]
    return in_order(found)


def _leads_back(path: Path) -> bool:
    """Whether it is a link to a folder that it lies in: each image would be found once a turn, forty times."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def in_order(names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Names sorted part by part, wherever they come from."""
    return sorted(names, key=lambda name: name.parts)


def labels_of(names: Sequence[PurePosixPath], pattern: str) -> list[str]:
    """Each name's label: what the first group of a regular expression finds in its last part.

    Raises:
        Failed: it finds nothing in one of them.
    """
    if problem := unlabelled(names, pattern):
        raise Failed(str(problem))
    return [match[1] for name in names if (match := re.search(pattern, name.name))]


def unlabelled(names: Sequence[PurePosixPath], pattern: str) -> Problem | None:
    """That a regular expression finds no label in some of the names, if so."""
    without = [name for name in names if not re.search(pattern, name.name)]
    if not without:
        return None
    return Problem(
        f"data.label_pattern={pattern}",
        _(
            "it finds no label in {count} of {total} images' names, for example {name}.",
            count=len(without),
            total=len(names),
            name=without[0],
        ),
        _(
            "Its first group (…) has to match the label, as (.+)_\\d+.jpg$ finds great_pyrenees in "
            "great_pyrenees_173.jpg; on the command line it has quotes inside quotes: 'data.label_pattern=\"…\"'."
        ),
    )
