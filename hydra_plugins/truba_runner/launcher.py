"""Hydra's `-m` as a job array: found by Hydra only under this package's name, so it holds no more than it must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

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
        return [
            self._returned(config, list(overrides), value)
            for config, overrides, value in zip(composed, job_overrides, launch_composed(composed), strict=True)
        ]

    @staticmethod
    def _returned(config: DictConfig, overrides: list[str], value: Any) -> JobReturn:
        returned = JobReturn(overrides=overrides, cfg=config, hydra_cfg=OmegaConf.create({"hydra": config.hydra}))
        returned.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
        returned.return_value = value
        return returned
