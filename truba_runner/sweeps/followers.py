"""Find interpolations of a config that may depend on the keys that a sweep sets, judging by their text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from omegaconf import Container, DictConfig, ListConfig

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
    waiting = dict(_interpolations(config, ()))
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


def _interpolations(node: Container, path: Path) -> Iterator[tuple[Path, str]]:
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node.keys())  # type: ignore[attr-defined]
    for key in keys:
        child = node._get_node(key)
        own = (*path, str(key))
        if child is None:
            continue
        if child._is_interpolation():  # type: ignore[union-attr]
            yield own, str(child._value())  # type: ignore[union-attr]
        elif isinstance(child, Container) and not (child._is_none() or child._is_missing()):
            yield from _interpolations(child, own)


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
