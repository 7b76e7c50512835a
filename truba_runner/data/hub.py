"""Fetch repositories of the Hugging Face Hub that an experiment names in `data.hub`, before its job is submitted.

They are written in the layout of huggingface_hub's cache, which `from_pretrained` and `snapshot_download` read without
a network. No package is needed here. https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from truba_runner.config.schema import Data
from truba_runner.data import download
from truba_runner.data.hub_names import FOLDER, Asset, assets
from truba_runner.language import _
from truba_runner.storage.files import json_bytes, write_atomically, written_whole

_ADDRESS = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _File:
    """A file of a repository, as the hub lists it. `sha1`: git's hash of a header and the content."""

    name: str
    size: int
    sha1: str
    sha256: str


def missing(data: Data) -> list[Asset]:
    """Return the repositories that are missing or incomplete."""
    return [asset for asset in assets(data) if not _is_whole(asset, Path(data.folder) / FOLDER)]


def _is_whole(asset: Asset, hub: Path) -> bool:
    folder = asset.folder(hub)
    with suppress(OSError, ValueError, KeyError, TypeError):
        fetched = json.loads((folder / asset.manifest).read_bytes())
        snapshot = folder / "snapshots" / fetched["commit"]
        return all((snapshot / name).stat().st_size == size for name, size in fetched["files"].items())
    return False


def fetch(asset: Asset, hub: Path) -> Path:
    """Download and check the missing files of a repository's newest commit (of its revision); return their folder.

    Raises:
        OSError: the hub cannot be reached, refuses, or sends a file that differs from its listing.
    """
    token = _token()
    try:
        commit, files = _listed(asset, token)
        folder = asset.folder(hub)
        snapshot = folder / "snapshots" / commit
        for file in files:
            path = snapshot / file.name
            if not (path.is_file() and path.stat().st_size == file.size):
                _fetch_file(asset, commit, file, path, token)
    except HTTPError as error:
        raise OSError(_explained(asset, error, token)) from error
    if not _COMMIT.fullmatch(asset.revision):
        reference = folder / "refs" / asset.revision
        reference.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(reference, commit.encode())
    fetched = {"commit": commit, "files": {file.name: file.size for file in files}}
    write_atomically(folder / asset.manifest, json_bytes(fetched))
    return snapshot


def _listed(asset: Asset, token: str) -> tuple[str, list[_File]]:
    """Ask the hub for the commit of the revision and its files; return those that are needed."""
    url = f"{_address()}/api/{asset.kind}/{asset.repo}/revision/{quote(asset.revision, safe='')}?blobs=true"
    try:
        answer = json.loads(download.read(url, token))
        commit = str(answer["sha"])
        files = [_file(one) for one in answer["siblings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(_("{url} did not answer as the hub does", url=url)) from error
    if not _COMMIT.fullmatch(commit):
        raise OSError(_("{url} did not answer as the hub does", url=url))
    wanted = [one for one in files if not asset.files or any(fnmatch(one.name, pattern) for pattern in asset.files)]
    if not wanted:
        raise OSError(_("no file of {asset} matches {patterns}", asset=asset, patterns=", ".join(asset.files)))
    return commit, wanted


def _file(entry: Mapping[str, Any]) -> _File:
    name = PurePosixPath(entry["rfilename"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(str(name))
    return _File(
        str(name), int(entry["size"]), str(entry.get("blobId", "")), str((entry.get("lfs") or {}).get("sha256", ""))
    )


def _fetch_file(asset: Asset, commit: str, file: _File, path: Path, token: str) -> None:
    kind = "" if asset.kind == "models" else f"{asset.kind}/"
    url = f"{_address()}/{kind}{asset.repo}/resolve/{commit}/{quote(file.name)}"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with written_whole(path, durable=False) as opened:
        download.save(url, opened, token)
        opened.flush()
        if not _is_as_listed(Path(opened.name), file):
            raise OSError(_("{file} is not the file that the hub described", file=url))


def _is_as_listed(path: Path, file: _File) -> bool:
    """Whether a download has the size and digest that the hub lists: SHA-256 for a large file, else git's SHA-1."""
    digest, expected = hashlib.sha256(), file.sha256
    if not expected:
        # Not for security: it is git's name for a file.
        digest, expected = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), file.sha1
    with path.open("rb") as content:
        while chunk := content.read(download.CHUNK_BYTES):
            digest.update(chunk)
    return path.stat().st_size == file.size and (not expected or digest.hexdigest() == expected)


def _address() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or _ADDRESS


def _token() -> str:
    """Return the user's access token from where huggingface_hub looks for it; empty if there is none."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache", "huggingface")
    with suppress(OSError):
        return Path(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).read_text().strip()
    return ""


def _explained(asset: Asset, error: HTTPError, token: str) -> str:
    about = f"HTTP {error.code}"
    if error.code in {401, 403}:
        if token:
            return _("{about}: your token may not read {asset}; ask for access on its page", about=about, asset=asset)
        return _("{about}: there is no {asset}, or it needs a token: set HF_TOKEN", about=about, asset=asset)
    if error.code == 404:
        return _("{about}: the hub has no {asset}", about=about, asset=asset)
    return f"{about} ({error.url})"
