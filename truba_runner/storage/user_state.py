"""The small folder in which the program keeps things for its user, whatever the project: under ~/.local/state."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """`$XDG_STATE_HOME/truba_runner`; it need not be there yet."""
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "truba_runner"
