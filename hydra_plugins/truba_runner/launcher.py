"""Hydra launcher that runs `-m` as job arrays; minimal, as Hydra finds plugins only in the package hydra_plugins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from truba_runner.older_python import zip_equal

ConfigStore.instance().store(
    group="hydra/launcher", name="truba", node={"_target_": f"{__name__}.TrubaLauncher"}, provider="truba_runner"
)


class TrubaLauncher(Launcher):
    """Launcher that submits all runs of a sweep at once, and waits for them only if `launcher.wait` is set."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the config and prepare the sweep.

        Raises:
            ConfigCompositionException: another application chose this launcher, which Hydra offers to all.
        """
        from truba_runner.config.schema import Experiment
        from truba_runner.sweeps.batches import HydraSweep

        if OmegaConf.get_type(config) is not Experiment:
            raise ConfigCompositionException(_not_for_others())
        self.config = config
        self.sweep = HydraSweep(hydra_context.config_loader, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, parsed: Iterable[Override] = ()
    ) -> Sequence[JobReturn]:
        """Compose every run, then launch them together.

        A run's return value is its outcome, or with `launcher.metric` that metric of its result. `parsed` are
        overrides that are already parsed.
        """
        values = self.sweep.launch(job_overrides, parsed, initial_job_idx)
        return [_returned(overrides, value) for overrides, value in zip_equal(job_overrides, values)]


def _not_for_others() -> str:
    from truba_runner.errors import Problem
    from truba_runner.language import _

    rule = _("this launcher is only for truba_runner's own experiments, and this application's config is not one.")
    remedy = _("Leave it out, or choose another launcher, such as hydra/launcher=basic.")
    return str(Problem("hydra/launcher=truba", rule, remedy))


def _returned(overrides: Sequence[str], value: object) -> JobReturn:
    failed = isinstance(value, Exception)
    return JobReturn(
        overrides=overrides, status=JobStatus.FAILED if failed else JobStatus.COMPLETED, _return_value=value
    )
