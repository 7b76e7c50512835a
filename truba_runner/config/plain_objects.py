"""A composed config as dataclasses, as OmegaConf converts it, in a tenth of the time."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode


class _OmegaConfsMatter(Exception):
    """What OmegaConf has rules, or words, of its own for."""


def to_object(config: Any) -> Any:
    """What `OmegaConf.to_object` gives; what cannot be converted, it says.

    Raises:
        OmegaConfBaseException: a value is missing, or an interpolation leads nowhere.
    """
    try:
        return _plain(config)
    except Exception:
        return OmegaConf.to_object(config)


def _plain(node: Any) -> Any:
    # Not by way of the nodes' own methods, which look for flags and interpolations at each step.
    held = node.__dict__["_val" if isinstance(node, ValueNode) else "_content"]
    if isinstance(held, str):
        if "${" in held:
            return _plain(_meant(node))
        if held == "???":
            raise _OmegaConfsMatter
    if isinstance(node, ValueNode) or held is None:
        return held
    if isinstance(node, ListConfig):
        return [_plain(item) for item in held]
    if not isinstance(node, DictConfig):
        raise _OmegaConfsMatter
    values = {key: _plain(value) for key, value in held.items()}
    kind: Any = node.__dict__["_metadata"].object_type
    is_section = dataclasses.is_dataclass(kind)
    return kind(**values) if is_section else values


def _meant(node: Any) -> Any:
    """The node that an interpolation stands for."""
    meant = node._dereference_node()
    held = meant.__dict__.get("_val")
    if isinstance(held, str) and "${" in held:  # It was escaped, and is a text.
        raise _OmegaConfsMatter
    return meant
