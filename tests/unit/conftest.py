from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from typing import cast

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from in_process import knowing
from omegaconf import DictConfig

from truba_runner.config.composing.compose import register
from truba_runner.config.schema import Experiment
from truba_runner.storage.package_files import shipped
from truba_runner.sweeps.compose import Composer
from truba_runner.training.interrupt import Interruption


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test remembers its runs in the developer's home, or lowers the priority of the tests after it."""
    monkeypatch.setattr(os, "nice", lambda increment: increment)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TRUBA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("TRUBA_CLUSTER", raising=False)
    return tmp_path


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What the worker does with signals is not the tests'."""
    before = {number: signal.getsignal(number) for number in Interruption.signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def plain_backend() -> Iterator[None]:
    """`job.backend=plain` is known in this process too."""
    with knowing(Path(__file__).parents[1] / "plain_backend"):
        yield


class Loader:
    """Hydra's, with each choice of config groups composed once for all tests of a file, as it takes 0.1 s."""

    def __init__(self) -> None:
        self._loader = GlobalHydra.instance().config_loader()
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, list[str]] = {}

    def get_group_options(self, key: str, overrides: list[str]) -> list[str]:
        if key not in self._groups:
            self._groups[key] = self._loader.get_group_options(key, overrides=overrides)
        return self._groups[key]

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        if tuple(overrides) not in self._composed:
            self._composed[tuple(overrides)] = self._loader.load_sweep_config(master, overrides)
        return copy(self._composed[tuple(overrides)])

    @cache  # noqa: B019  # One a file.
    def master(self) -> DictConfig:
        return self._loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)


@pytest.fixture(scope="module")
def hydra_ready() -> Iterator[Loader]:
    """Hydra is one a process: outliving its file, it would keep the next one of the process from starting its own."""
    register()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        yield Loader()


@pytest.fixture
def experiment(hydra_ready: Loader) -> Callable[..., Experiment]:
    """Composes an experiment as the command line does one of a sweep; by default mnist on TRUBA's own config."""
    # One a test: what a test's environment says stays in it.
    composer = Composer(cast(ConfigLoader, hydra_ready), hydra_ready.master())

    def composed(*overrides: str, cluster: str = "truba", name: str = "mnist") -> Experiment:
        # Runs of a sweep share what they have in common; a test may alter its own.
        return deepcopy(composer([f"cluster={cluster}", f"+experiment={name}", *overrides]).experiment)

    return composed
