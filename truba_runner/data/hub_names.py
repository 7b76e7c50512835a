"""Parse `data.hub`, the Hugging Face repositories that a job reads, and set the variables that it needs. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Data
from truba_runner.errors import Problem
from truba_runner.language import _

# Folder in the data folder; HF_HUB_CACHE of a job.
FOLDER = "hub"
_ENTRY = re.compile(r"(?:(?P<kind>models|datasets|spaces)/)?(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_KEYS = {"repo", "files"}


@dataclass(frozen=True)
class Asset:
    """A repository of the hub: its kind, name and revision, and patterns of the needed files (none: all files)."""

    kind: str
    repo: str
    revision: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as it is written in data.hub."""
        kind = "" if self.kind == "models" else f"{self.kind}/"
        return f"{kind}{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")

    def folder(self, hub: Path) -> Path:
        """Return its folder in the cache."""
        return hub / "--".join([self.kind, *self.repo.split("/")])

    @property
    def manifest(self) -> str:
        """Name of the file, in its folder, that lists what was fetched."""
        about = json.dumps([self.revision, self.files]).encode()
        return f"truba-{hashlib.sha256(about).hexdigest()[:8]}.json"


def assets(data: Data) -> list[Asset]:
    """Return the repositories that `data.hub` names; entries that `problems` reports are left out."""
    return [asset for asset in map(_asset, data.hub) if asset is not None]


def problems(data: Data) -> Iterator[Problem]:
    """Yield a Problem for each entry of `data.hub` that names no repository."""
    for entry in data.hub:
        if _asset(entry) is None:
            yield Problem(
                f"data.hub={entry}",
                _("an entry is OWNER/NAME; @REVISION may follow it, and datasets/ precedes it for a data set."),
                _("Write it that way, or for some files: {repo: OWNER/NAME, files: ['*.json', '*.safetensors']}."),
            )


def _asset(entry: Any) -> Asset | None:
    values = entry if isinstance(entry, Mapping) else {"repo": entry}
    found = _ENTRY.fullmatch(str(values.get("repo", "")))
    files = values.get("files", [])
    if found is None or ".." in found[0] or set(values) - _KEYS or not isinstance(files, Sequence):
        return None
    patterns = [files] if isinstance(files, str) else map(str, files)
    return Asset(found["kind"] or "models", found["repo"], found["revision"] or "main", tuple(patterns))


def variables(data: Data) -> dict[str, str]:
    """Return the variables that make a training read the fetched repositories, without a network; empty if none.

    Older versions of the libraries read TRANSFORMERS_OFFLINE and HUGGINGFACE_HUB_CACHE.
    """
    if not data.hub:
        return {}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    folder = str(Path(data.folder).absolute() / FOLDER)
    return {"HF_HUB_CACHE": folder, "HUGGINGFACE_HUB_CACHE": folder, **offline}
