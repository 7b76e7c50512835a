"""Print JSON on standard output, and values in tables."""

from __future__ import annotations

import json
from typing import Any

from truba_runner.storage.files import finite


def short(value: Any, none: str = "") -> str:
    """Format a value for a table: numbers with four digits, None as `none`."""
    if value is None:
        return none
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_json(value: Any) -> None:
    """Print a value as one JSON document; NaN and infinities become null."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))
