"""Hydra's basic sweeper, but without writing files, and with composing left to the launcher."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.truba_runner.launcher import TrubaLauncher

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="truba",
    node={"_target_": f"{__name__}.TrubaSweeper", "max_batch_size": None, "params": {}},
    provider="truba_runner",
)


class TrubaSweeper(BasicSweeper):
    """Sweeper that launches the product of all swept values in one batch."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Expand the overrides and launch the runs.

        Raises:
            truba_runner.errors.Refused: an override has no values.
            Exception: the return value of a failed run.
        """
        from truba_runner.sweeps.batches import all_elements

        assert self.hydra_context is not None and self.launcher is not None  # noqa: S101  # Hydra called setup.
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        launch, parsed = self.launcher.launch, all_elements(overrides)
        if isinstance(self.launcher, TrubaLauncher):
            # Parsing each run's overrides again would take longer than all other work.
            launch = partial(self.launcher.launch, parsed=parsed)
        returned: list[Sequence[JobReturn]] = []
        first = 0
        for batch in self.split_arguments(overrides, self.max_batch_size):
            returned.append(launch(batch, initial_job_idx=first))
            first += len(batch)
            for one in returned[-1]:
                # Not `one.return_value`: it prints before it raises.
                if one.status is JobStatus.FAILED:
                    raise one._return_value
        return returned
