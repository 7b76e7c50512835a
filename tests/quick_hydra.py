"""Compose thousands of command lines quickly: Hydra composes each choice of config groups only once.

Composing takes Hydra a third of a second, and calling the app as much again. Here a line's other overrides are applied
to a copy of the composed config, by Hydra's own functions. The app's code, from `main` on, runs unchanged.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import hydra
import omegaconf.base
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.truba_runner import sweeper
from hydra_plugins.truba_runner.launcher import TrubaLauncher
from truba_runner.cli import app
from truba_runner.config.composing import compose as composed
from truba_runner.config.composing import hydra_keys
from truba_runner.sweeps import compose

_parser = OverridesParser.create()
# Parsed overrides, or the errors, by text.
_parsed: dict[str, Override | Exception] = {}


def _parse(text: str) -> Override:
    if text not in _parsed:
        try:
            (_parsed[text],) = _parser.parse_overrides([text])
        except Exception as error:
            _parsed[text] = error
    found = _parsed[text]
    if isinstance(found, Exception):
        raise found
    return found


class _Parser:
    """An OverridesParser that parses each text once."""

    @staticmethod
    def create(**_named: object) -> type[_Parser]:
        return _Parser

    @staticmethod
    def parse_overrides(texts: Sequence[str]) -> list[Override]:
        return [_parse(text) for text in texts]


class _Repository(ConfigRepository):
    """A ConfigRepository that searches for and reads each file once."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._read: dict[str, bytes] = {}
        self._found: dict[tuple[str, ObjectType | None], ConfigSource | None] = {}

    def __deepcopy__(self, _memory: object) -> _Repository:
        return self

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._read:
            self._read[config_path] = pickle.dumps(super().load_config(config_path))
        return cast("ConfigResult | None", pickle.loads(self._read[config_path]))

    def _find_object_source(self, config_path: str, object_type: ObjectType | None) -> ConfigSource | None:
        if (config_path, object_type) not in self._found:
            self._found[config_path, object_type] = super()._find_object_source(config_path, object_type)
        return self._found[config_path, object_type]


class QuickLoader:
    """The part of a ConfigLoader that the app, its sweeper and its launcher use."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._loader = loader
        # Read each file of conf/ once for all choices: Hydra caches only within one.
        loader.repository = _Repository(loader.config_search_path)
        self._bases: dict[tuple[str, ...], bytes | Exception] = {}
        self._groups: dict[str, list[str]] = {}

    def get_group_options(self, key: str, *_arguments: object, **_named: object) -> list[str]:
        if key not in self._groups:
            self._groups[key] = [] if "." in key else self._loader.get_group_options(key)
        return self._groups[key]

    def load_configuration(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        parsed = [_parse(text) for text in overrides]
        self._loader.validate_sweep_overrides_legal(parsed, mode, from_shell=True)
        composing = [one for one in parsed if self._composes(one)]
        config = self._base(tuple(str(one.input_line) for one in composing), mode)
        try:
            ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one not in composing], config)
        except OmegaConfBaseException as error:
            raise hydra.errors.ConfigCompositionException from error
        config.hydra.overrides.task = [one.input_line for one in parsed if not one.is_hydra_override()]
        return config

    def load_sweep_config(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        return self.load_configuration([*master.hydra.overrides.hydra, *overrides], RunMode.RUN)

    def _composes(self, override: Override) -> bool:
        if override.is_sweep_override():
            return False
        group = override.key_or_group
        return group.startswith("hydra") or ("." not in group and bool(self.get_group_options(group)))

    def _base(self, overrides: tuple[str, ...], mode: RunMode) -> DictConfig:
        if overrides not in self._bases:
            try:
                config = self._loader.load_configuration("config", list(overrides), mode)
                self._bases[overrides] = pickle.dumps(config)
            except Exception as error:
                self._bases[overrides] = error
        base = self._bases[overrides]
        if isinstance(base, Exception):
            raise base
        return cast(DictConfig, pickle.loads(base))


def small_site(conf: Path) -> None:
    """Write `cluster=small`: TRUBA with only two partitions, as the time to convert a config grows with its size."""
    site = yaml.safe_load((composed.shipped("conf") / "cluster" / "truba.yaml").read_text())
    kept = {name: site["partitions"][name] for name in ("akya-cuda", "debug")}
    kept["debug"]["families"] = ["akya-cuda"]
    (conf / "cluster").mkdir(parents=True)
    (conf / "cluster" / "small.yaml").write_text(yaml.safe_dump({**site, "name": "small", "partitions": kept}))


@contextlib.contextmanager
def quick_hydra(conf: Path) -> Iterator[None]:
    """Let the app compose with a `QuickLoader`, which also finds the config groups in `conf`."""
    composed.register()
    with hydra.initialize_config_dir(str(composed.shipped("conf")), version_base="1.3"):
        search_path = GlobalHydra.instance().config_loader().get_search_path()
        search_path.prepend("test", f"file://{conf}")
        loader = QuickLoader(ConfigLoaderImpl(search_path))

        def main(**_named: object) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
            return lambda task: lambda: _run(loader, task, sys.argv[1:])

        quick = SimpleNamespace(main=main, initialize_config_dir=mock.MagicMock())
        known = SimpleNamespace(instance=lambda: SimpleNamespace(config_loader=lambda: loader))
        with (
            mock.patch.object(app, "hydra", quick),
            mock.patch.object(app, "register"),
            mock.patch.object(app, "GlobalHydra", known),
            mock.patch.object(hydra_keys, "get_args_parser", cache(hydra_keys.get_args_parser)),
            mock.patch.object(compose, "OverridesParser", _Parser),
            mock.patch.object(sweeper, "OverridesParser", _Parser),
            mock.patch.object(omegaconf.base, "parse", cache(omegaconf.base.parse)),
            _seldom_collected(),
        ):
            yield


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Collect garbage less often: with thousands of objects for each config it would take a third of the time."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _run(loader: QuickLoader, task: Callable[[DictConfig], None], arguments: list[str]) -> None:
    overrides = [text for text in arguments if text != "-m"]
    if "-m" not in arguments:
        config = loader.load_configuration(overrides, RunMode.RUN)
        of_hydra = config._content.pop("hydra")
        with mock.patch.object(HydraConfig, "get", lambda: of_hydra):
            task(config)
        return
    config = loader.load_configuration(overrides, RunMode.MULTIRUN)
    context = HydraContext(config_loader=cast(ConfigLoader, loader), callbacks=cast(Any, None))
    sweeps, launcher = sweeper.TrubaSweeper(max_batch_size=None), TrubaLauncher()
    launcher.setup(hydra_context=context, task_function=cast(Any, task), config=config)
    sweeps.launcher, sweeps.hydra_context, sweeps.config = launcher, context, config
    sweeps.sweep(list(config.hydra.overrides.task))
