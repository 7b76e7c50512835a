"""Read and validate the records of runs, without following a link out of a run's folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.runs import record_shapes
from truba_runner.storage import safe_files

# Describes what is wrong with a record; empty if nothing is.
Wrong = Callable[[Mapping[str, Any]], str]


class Damaged(ValueError):
    """A record that is cut short, or holds something else than it should."""


def read_object(path: Path, wrong: Wrong) -> dict[str, Any]:
    """Read a record that is one JSON object; empty if there is no such file.

    Raises:
        Damaged: the file is cut short, or holds something else.
        OSError: the file cannot be read.
    """
    try:
        content = safe_files.read(path, path.parent)
    except FileNotFoundError:
        return {}
    value = parsed(content, path.name)
    if not isinstance(value, dict):
        raise Damaged(_("{file} is no record", file=path.name))
    if why := wrong(value):
        raise Damaged(_("{file} holds {what}", file=path.name, what=why))
    return value


def parsed(text: bytes | str, name: str) -> Any:
    """Parse JSON; `name` is the file's name, for the error.

    Raises:
        Damaged: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Damaged(_("{file} is nested too deeply", file=name)) from error
    except ValueError as error:  # Also raised for bytes that are not UTF-8, and numbers of thousands of digits.
        raise Damaged(_("{file} is cut short, or is no JSON ({error})", file=name, error=error)) from error


def history(path: Path) -> list[dict[str, str]]:
    """Return the rows of a `history.csv`, with values as strings; none if there is no such file.

    Raises:
        Damaged: a row is cut short, or holds something else than numbers.
        OSError: the file cannot be read.
    """
    try:
        text = safe_files.read(path, path.parent).decode(errors="replace")
    except FileNotFoundError:
        return []
    try:
        rows: Sequence[Mapping[Any, Any]] = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise Damaged(_("{file} is no table ({error})", file=path.name, error=error)) from error
    if why := record_shapes.wrong_history(rows):
        raise Damaged(_("{file} holds {what}", file=path.name, what=why))
    return [dict(row) for row in rows]
