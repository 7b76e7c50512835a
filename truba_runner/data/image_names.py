"""List images by name, in an order that is the same everywhere, and extract labels from names.

No file is opened, so this is cheap enough for a login node.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from truba_runner.errors import Failed, Problem
from truba_runner.language import _

# The same suffixes as in fastai's get_image_files.
EXTENSIONS = {suffix for suffix, kind in mimetypes.types_map.items() if kind.startswith("image/")}


def is_image(name: PurePosixPath) -> bool:
    """Whether get_image_files would include a file; `name` is relative to the folder that is listed."""
    return name.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in name.parts)


def names_in(folder: Path) -> list[PurePosixPath]:
    """Return the paths of all images under a folder, relative to it, sorted: disks list them in different orders.

    In another order a split by seed would choose other images for validation, and a resumed run would be validated on
    images it was trained on.
    """
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(here) / name)]
        inside = PurePosixPath(Path(here).relative_to(folder).as_posix())
        found += [inside / name for name in files if is_image(PurePosixPath(name))]
    return in_order(found)


def _leads_back(path: Path) -> bool:
    """Whether a path is a symlink to a folder above it: images would be listed at each of forty levels."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def in_order(names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Return names sorted by their path parts."""
    return sorted(names, key=lambda name: name.parts)


def labels_of(names: Sequence[PurePosixPath], pattern: str) -> list[str]:
    """Return the label of each name: the first group of a regular expression, searched in the file name.

    Raises:
        truba_runner.errors.Failed: the expression does not match a name.
    """
    if problem := unlabelled(names, pattern):
        raise Failed(str(problem))
    return [match[1] for name in names if (match := re.search(pattern, name.name))]


def unlabelled(names: Sequence[PurePosixPath], pattern: str) -> Problem | None:
    """Return a Problem if a regular expression finds no label in some names; else None."""
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
