"""List this machine's environment modules (`module -t avail`), so that messages name only modules that exist."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from truba_runner.errors import listed, nearest
from truba_runner.language import _
from truba_runner.python_check import available_modules
from truba_runner.storage.files import write_atomically
from truba_runner.storage.user_state import state_folder

# `module avail` takes many seconds on a large site. The list is renewed after a day: sites add modules.
_KEPT_SECONDS = 24 * 3600.0


def available() -> list[str] | None:
    """Return the names of all modules, cached for a day; None if this machine has no modules or does not answer."""
    file = _file()
    with suppress(OSError, ValueError, TypeError):
        if time.time() - file.stat().st_mtime < _KEPT_SECONDS:
            return [str(name) for name in json.loads(file.read_bytes())]
    names = available_modules()
    if names is not None:
        with suppress(OSError):  # Without a writable home nothing is cached.
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(file, json.dumps(names).encode())
    return names


def _file() -> Path:
    # Login nodes with different modules may share one home folder.
    where = f"{socket.gethostname()}-{os.environ.get('MODULEPATH', '')}"
    return state_folder() / "modules" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"


def remedy(wanted: Sequence[str]) -> str:
    """Return a sentence that suggests an existing module for each of `wanted` that does not exist."""
    names = available() or []
    missing = [name for name in wanted if names and not _is_there(name, names)]
    sentences = [nearest(name, names) if len(missing) == 1 else f"{name}: {nearest(name, names)}" for name in missing]
    return " ".join([*sentences, _("module avail lists the available modules.")])


def like(*words: str) -> str:
    """Return a sentence that lists the existing modules with one of these words in their name."""
    found = [name for name in available() or [] if any(word in name.lower() for word in words)]
    listing = [_("There are: {names}.", names=listed(found))] if found else []
    return " ".join([*listing, _("module avail lists the available modules.")])


def _is_there(name: str, names: Sequence[str]) -> bool:
    # A name without its version stands for the site's default version.
    return any(one == name or one.startswith(f"{name}/") for one in names)
