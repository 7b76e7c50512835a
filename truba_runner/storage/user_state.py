"""Path of the program's state folder of this user, shared by all projects: under ~/.local/state."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """Return `$XDG_STATE_HOME/truba_runner`, which may not exist yet."""
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "truba_runner"
