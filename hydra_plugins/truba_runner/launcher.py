"""Hydra's `-m` as a job array: found by Hydra only under this package's name, so it holds no more than it must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

ConfigStore.instance().store(
    group="hydra/launcher", name="truba", node={"_target_": f"{__name__}.TrubaLauncher"}, provider="truba_runner"
)


class TrubaLauncher(Launcher):
    """Submits every run of a sweep at once and returns without waiting for them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra gives."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Composes every run, then launches them together.

        A run's return value is its outcome, or with `launcher.metric` that metric of its result.
        """
        from truba_runner.app import launch_composed

        loader = self.hydra_context.config_loader
        composed = [loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        hydra_nodes = [_taken_out(config) for config in composed]
        values = launch_composed(composed, hydra_nodes[0])
        return [_returned(*one) for one in zip(composed, hydra_nodes, job_overrides, values, strict=True)]


def _taken_out(config: DictConfig) -> DictConfig:
    """Takes Hydra's own node out of a composed config, as Hydra does before it runs a job."""
    with open_dict(config):
        node = config.pop("hydra")
    assert isinstance(node, DictConfig)  # noqa: S101
    return node


def _returned(config: DictConfig, hydra_node: DictConfig, overrides: Sequence[str], value: Any) -> JobReturn:
    returned = JobReturn(overrides=overrides, cfg=config, hydra_cfg=OmegaConf.create({"hydra": hydra_node}))
    returned.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    returned.return_value = value
    return returned
