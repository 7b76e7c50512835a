"""Check that a config has the shape of the schema: no added or removed keys, and every section of its type."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from truba_runner.config.omegaconf_private import nodes_of
from truba_runner.errors import Problem, listed, nearest
from truba_runner.language import _


def wrong_keys(config: DictConfig, section: str = "") -> Iterator[Problem]:
    """Report keys added with + that the schema does not have, which would have no effect, and keys removed with ~."""
    kind: Any = OmegaConf.get_type(config)
    nodes = nodes_of(config)
    if valid := _fields(kind):
        for taken in sorted(valid.keys() - nodes.keys()):
            yield Problem(
                f"~{section}{taken}", _("a run needs this key."), _("Leave it out: then the key keeps its default.")
            )
        for name in sorted(nodes.keys() - valid.keys(), key=str):
            yield Problem(f"{section}{name}", _("there is no such key."), nearest(str(name), valid))
    for name, node in nodes.items():
        if isinstance(node, DictConfig):
            yield from wrong_keys(node, f"{section}{name}.")


def wrong_sections(made: Any, kind: Any, place: str = "") -> Iterator[Problem]:
    """Report parts of a converted config whose type differs from the schema's.

    OmegaConf checks single values against the schema, but not an interpolation that replaces a whole section.
    """
    if fields := _fields(kind):
        if not isinstance(made, kind):
            keys = listed([f"{place}.{name}" for name in fields])
            yield Problem(
                place,
                _("it is a section with its own keys, and got {value}.", value=_shown(made)),
                _("Set one of its keys: {keys}.", keys=keys),
            )
            return
        for name, annotation in fields.items():
            yield from wrong_sections(getattr(made, name), annotation, f"{place}.{name}".lstrip("."))
    elif get_origin(kind) in (dict, list):
        yield from _wrong_parts(made, kind, place)


def _wrong_parts(made: object, kind: Any, place: str) -> Iterator[Problem]:
    container, of = get_origin(kind), get_args(kind)[-1]
    if container is list and not isinstance(made, list):
        rule = _("it takes a list, and got {value}.", value=_shown(made))
        yield Problem(place, rule, _("Write it in brackets: {key}=[VALUE].", key=place))
    elif container is dict and not isinstance(made, dict):
        rule = _("it takes names with values, and got {value}.", value=_shown(made))
        yield Problem(place, rule, _("Write it in braces: {key}={{NAME: VALUE}}.", key=place))
    elif container is list and of is str and (wrong := [item for item in made if not isinstance(item, str)]):  # type: ignore[attr-defined]
        # OmegaConf checks plain items alone.
        rule = _("each item of this list is a text, and it got {value}.", value=_shown(wrong[0]))
        yield Problem(place, rule, _("Write it in brackets: {key}=[VALUE].", key=place))
    elif isinstance(made, dict):
        for name, value in made.items():
            yield from wrong_sections(value, of, f"{place}.{name}")


def _shown(value: object) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__.lower()
    text = "null" if value is None else str(value)
    return text if len(text) < 80 else f"{text[:80]}…"


@cache
def _fields(kind: Hashable) -> dict[str, Any]:
    """Return the keys of a section with their types; empty for any other type."""
    return get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
