"""Print JSON on standard output."""

from __future__ import annotations

import json
from typing import Any

from truba_runner.storage.files import finite


def print_json(value: Any) -> None:
    """Print a value as one JSON document; NaN and infinities become null."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))
