"""Everything that uses private parts of OmegaConf: values as they are held, without the checks of each access.

Checked with OmegaConf 2.3.1. If another version holds its values otherwise, `to_object` leaves the work to OmegaConf
and takes ten times as long, and the other functions raise AttributeError or KeyError (tests/unit/config,
tests/unit/sweeps/test_sweep_compose.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf._utils import split_key


class _OmegaConfsMatter(Exception):
    """A value that only OmegaConf itself can convert or report."""


def to_object(config: Any) -> Any:
    """Return what `OmegaConf.to_object` returns; anything that fails here is passed on to OmegaConf, which reports it.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value is missing, or an interpolation cannot be resolved.
    """
    try:
        return plain(config)
    except Exception:
        return OmegaConf.to_object(config)


def plain(node: Any) -> Any:
    """Convert a node, in a tenth of OmegaConf's time; any exception: it may be a value that has rules of its own."""
    held = node.__dict__["_val" if isinstance(node, ValueNode) else "_content"]
    if isinstance(held, str):
        if "${" in held:
            return plain(_meant(node))
        if held == "???":
            raise _OmegaConfsMatter
    if isinstance(node, ValueNode) or held is None:
        return held
    if isinstance(node, ListConfig):
        return [plain(item) for item in held]
    if not isinstance(node, DictConfig):
        raise _OmegaConfsMatter
    values = {key: plain(value) for key, value in held.items()}
    kind: Any = node.__dict__["_metadata"].object_type
    is_section = dataclasses.is_dataclass(kind)
    return kind(**values) if is_section else values


def _meant(node: Any) -> Any:
    """Return the node that an interpolation refers to."""
    meant = node._dereference_node()
    held = meant.__dict__.get("_val")
    if isinstance(held, str) and "${" in held:  # An escaped interpolation is plain text.
        raise _OmegaConfsMatter
    return meant


def nodes_of(config: DictConfig) -> dict[Any, Any]:
    """Return the nodes of a mapping by key; none if it is null, missing or an interpolation."""
    held = config.__dict__["_content"]
    return held if isinstance(held, dict) else {}


def node_at(config: Any, path: Iterable[str]) -> Any:
    """Return the node at a path, with interpolations on the way not followed."""
    for part in path:
        config = config._get_node(int(part) if isinstance(config, ListConfig) else part)
    return config


def leaf_at(config: Any, path: Iterable[str]) -> ValueNode:
    """Return the node that holds a value and knows its type.

    Raises:
        TypeError: there is no plain value.
    """
    node = node_at(config, path)
    if not isinstance(node, ValueNode) or node._is_interpolation():
        raise TypeError(f"{path} is no plain value")
    return node


def set_leaf(node: ValueNode, value: Any) -> None:
    """Set the value of a node, converted to its type."""
    node._set_value(value)


def path_of(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted key, in which a list's index may stand in brackets."""
    return tuple(split_key(key))
