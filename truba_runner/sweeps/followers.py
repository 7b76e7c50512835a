"""Find interpolations of a config that may depend on the keys that a sweep sets, judging by their text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

_INNERMOST = re.compile(r"\$\{([^${}]*)\}")
# Resolvers that read nothing from the config.
_OUTSIDE = ("oc.env:", "env_or:", "user:", "detect_cluster:")
_ABSOLUTE = re.compile(r"[A-Za-z_][\w/-]*(\.[\w/-]+)*")

Path = tuple[str, ...]


def overlap(one: Path, other: Path) -> bool:
    """Return whether one path equals or contains the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def followers_of(config: DictConfig, swept: Sequence[Path]) -> list[Path]:
    """Return the interpolations that are not known to be independent of the swept keys."""
    waiting = dict(_interpolations(OmegaConf.to_container(config, resolve=False), ()))
    moving = list(swept)
    followers: list[Path] = []
    found = True
    while found:
        found = False
        for path, text in list(waiting.items()):
            if any(path == key for key in swept):
                del waiting[path]  # The sweep overwrites it.
            elif _may_follow(text, moving):
                del waiting[path]
                followers.append(path)
                moving.append(path)
                found = True
    return followers


def _interpolations(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        if "${" in value:
            yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _interpolations(item, (*path, str(key)))


def _may_follow(text: str, moving: Sequence[Path]) -> bool:
    inner = _INNERMOST.findall(text)
    if "${" in _INNERMOST.sub("", text):
        return True  # Nested: the text does not show what it refers to.
    for reference in inner:
        if reference.startswith(_OUTSIDE):
            continue
        if not _ABSOLUTE.fullmatch(reference):
            return True
        if any(overlap(tuple(reference.split(".")), path) for path in moving):
            return True
    return False
