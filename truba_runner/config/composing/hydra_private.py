"""Everything that uses private parts of Hydra: its command line's parser, and how it applies and writes overrides.

Checked with Hydra 1.3.8. If another version names them otherwise, importing this fails, or composing a sweep does
(tests/unit/sweeps/test_sweep_compose.py). Besides these, the package's sweeper is a subclass of Hydra's own
(hydra_plugins/truba_runner/sweeper.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig


def apply(override: Override, config: DictConfig) -> None:
    """Apply an override to a config, as Hydra does with each of a command line."""
    ConfigLoaderImpl._apply_overrides_to_config([override], config)


def elements(override: Override) -> Iterator[Override]:
    """Yield the values of an override that may sweep, each as an override typed by itself."""
    values: Iterable[Any] = override.sweep_iterator() if override.is_sweep_override() else [override._value]
    for value in values:
        text = f"{override.get_key_element()}={Override._get_value_element_as_str(value)}"
        yield replace(override, value_type=ValueType.ELEMENT, _value=value, input_line=text)
