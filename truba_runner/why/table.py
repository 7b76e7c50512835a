"""Read the table of reasons, `reasons.yaml`: what a Slurm state or a line of a log means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir

SECTIONS = ("waiting", "ended", "exit", "log", "record")


@dataclass(frozen=True)
class Row:
    """One reason. `means` and `do` are in English, with placeholders; see the head of the table."""

    id: str
    matches: re.Pattern[str]
    means: str
    do: str
    look: tuple[str, ...]


@dataclass(frozen=True)
class Meaning:
    """A row that matched, with the values of its pattern's named groups."""

    row: Row
    groups: Mapping[str, str]

    def said(self, values: Mapping[str, str]) -> tuple[str, str]:
        """Return the meaning and the remedy in the user's language; `values` and groups fill the placeholders."""
        filled = {**values, **{name: _word(found) for name, found in self.groups.items()}}
        return _(self.row.means).format(**filled), _(self.row.do).format(**filled)


def meaning(section: str, text: str) -> Meaning | None:
    """Return the first row of a section that matches."""
    return _first(table()[section], text)


def refusal(run: RunDir, text: str) -> Meaning | None:
    """Return the row of `cluster.refusals`, from the run's config, that explains this text of the submit filter.

    None: no row matches, or the config cannot be read or is damaged.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, re.error):
        rows = run.read_config()["cluster"]["refusals"]
        found = _first([Row(one["id"], re.compile(one["matches"]), one["means"], one["do"], ()) for one in rows], text)
        if found:
            found.said({})  # Raises if a sentence has placeholders other than the groups.
        return found
    return None


def _first(rows: Iterable[Row], text: str) -> Meaning | None:
    for row in rows:
        if found := row.matches.search(text):
            return Meaning(row, {name: value or "unknown" for name, value in found.groupdict().items()})
    return None


@cache
def table() -> Mapping[str, tuple[Row, ...]]:
    """Return all rows by section, in the order of the file."""
    return {section: tuple(_row(section, one) for one in _file()[section]) for section in SECTIONS}


@cache
def words() -> Mapping[str, str]:
    """Return the English words for values of named groups, by the value in lower case."""
    return dict(_file()["words"])


def _word(found: str) -> str:
    english = words().get(found.lower())
    return _(english) if english else found


@cache
def _file() -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (resources.files("truba_runner.why") / "reasons.yaml").read_bytes()
    found: dict[str, Any] = yaml.load(text, loader)  # noqa: S506  # Both are safe.
    return found


def _row(section: str, one: Mapping[str, Any]) -> Row:
    # Versions of Slurm differ in letter case. In a log the case is significant, and ignoring it is slower.
    pattern = re.compile(one["matches"], 0 if section == "log" else re.IGNORECASE)
    return Row(one["id"], pattern, one["means"], one["do"], tuple(one.get("look", ())))
