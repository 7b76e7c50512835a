"""JSON for the terminal."""

from __future__ import annotations

import json
from typing import Any

from truba_runner.storage.files import finite


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))
