from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir

from truba_runner import backends
from truba_runner.composed import register, typed
from truba_runner.config import Experiment
from truba_runner.shipped import shipped


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test remembers its runs in the developer's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TRUBA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("TRUBA_CLUSTER", raising=False)
    return tmp_path


@pytest.fixture
def plain_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process knows `job.backend=plain`, as those do that have its folder on their PYTHONPATH."""
    monkeypatch.setattr(backends, "__path__", [*backends.__path__])
    with mock.patch.dict(backends.TRAITS):
        runpy.run_path(str(Path(__file__).parents[1] / "plain_backend" / "sitecustomize.py"))
        yield


@pytest.fixture(scope="module")
def hydra_ready() -> Iterator[None]:
    """Hydra is one a process: outliving its file, it would keep the next one of the process from starting its own."""
    register()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        yield


@pytest.fixture
def experiment(hydra_ready: None) -> Callable[..., Experiment]:
    """Composes an experiment as the command line does; by default mnist on TRUBA's own config."""

    def composed(*overrides: str, cluster: str = "truba", name: str = "mnist") -> Experiment:
        return typed(compose("config", [f"cluster={cluster}", f"+experiment={name}", *overrides]))

    return composed
