"""Adapter to Hydra's launcher and sweeper: takes batches of overrides, returns outcomes or metrics."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from truba_runner.config.composing.compose import as_typed
from truba_runner.config.composing.hydra_private import elements
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.runs.run_directory import RunDir
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.sweeps import sweeper_job
from truba_runner.sweeps.compose import Composed, Composer
from truba_runner.sweeps.launch import Refusals, launch_sweep

# Prefix of this package's own sweeper; any other may ask for more runs once it has the results of the first.
_OWN_SWEEPER = "hydra_plugins.truba_runner."
# Parts of the class names of sweepers that choose runs by the results of earlier ones.
_WAITING_SWEEPERS = ("optuna", "ax_sweeper", "nevergrad", "smac", "hypersweeper")
# Overrides that say how a sweep is run, not which runs it has, so they are not part of its identity.
_NOT_ITS_RUNS = ("sweep.", "launcher.")


class HydraSweep:
    """One sweep as Hydra's launcher sees it: one batch of runs or, from sweepers that wait for values, many."""

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        """`config` is what Hydra composed from the command line."""
        self._composer = Composer(loader, config)
        self._identity: list[str] = []
        sweeper = str(config.hydra.sweeper._target_)
        if not sweeper.startswith(_OWN_SWEEPER) or config.hydra.sweeper.max_batch_size:
            given = [
                one for one in as_typed(config.hydra.overrides.task) if not one.lstrip("+").startswith(_NOT_ITS_RUNS)
            ]
            self._identity = [sweeper, *given]
        self._wants_values = any(name in sweeper.lower() for name in _WAITING_SWEEPERS)
        # Removed so that the jobs that this command submits do not inherit it.
        self._inside_job = bool(os.environ.pop(sweeper_job.INSIDE, ""))

    def launch(self, batch: Sequence[Sequence[str]], parsed: Iterable[Override] = (), first: int = 0) -> list[Any]:
        """Launch these runs; return for each its outcome, its metric if one is requested, or its exception.

        `first` is the number of the batch's first run in the whole sweep.

        Raises:
            truba_runner.errors.Refused: a run breaks a rule; then none of them is submitted.
            truba_runner.sweeps.sweeper_job.SweeperSubmitted: a job runs the sweeper, or a dry run is complete.
            truba_runner.errors.Failed: Slurm does not answer, or a signal ended the command early.
        """
        for override in parsed:
            self._composer.knows(override)
        varied = _varied(batch)

        def label(index: int) -> str:
            return " ".join(text for text, varies in zip(batch[index], varied) if varies) or _(
                "run {number}", number=index
            )

        refusals = Refusals(len(batch))
        runs: list[Composed] = []
        composed: list[int] = []
        for index, overrides in enumerate(batch):
            try:
                runs.append(self._composer(overrides, first + index))
                composed.append(index)
            except Refused as refused:
                refusals.add(refused, label(index))
        if self._wants_values and not refusals.found:
            _refuse_without_values(runs[0].experiment)
        outcomes = launch_sweep(
            runs, lambda position: label(composed[position]), self._identity, self._inside_job, refusals
        )
        if self._wants_values and any(outcome.action == Action.DRY_RUN for outcome in outcomes):
            print(_("these are the sweeper's first runs; it chooses later ones by their values"))
            raise sweeper_job.SweeperSubmitted
        if any(outcome.stopped for outcome in outcomes):
            raise Failed("the command was interrupted; run it again to continue with the remaining runs")
        return [_value(outcome, run.experiment) for outcome, run in zip_equal(outcomes, runs)]


def _refuse_without_values(experiment: Experiment) -> None:
    launcher = experiment.launcher
    if not launcher.metric or not (launcher.wait or experiment.sweep.sweeper_partition):
        raise Refused(
            Problem(
                "hydra/sweeper",
                _("this sweeper chooses its runs by the values of earlier ones."),
                _(
                    "Set launcher.metric=NAME, one of the result's metrics, and launcher.wait=true; or, to run the "
                    "sweeper in a job instead of waiting on the login node, sweep.sweeper_partition=PARTITION."
                ),
            )
        )


def _varied(batch: Sequence[Sequence[str]]) -> list[bool]:
    """Return for each position in the runs' overrides whether its values differ."""
    return [len(set(column)) > 1 for column in itertools.zip_longest(*batch)]


def _value(outcome: Outcome, experiment: Experiment) -> Any:
    if outcome.action == Action.FAILED:
        return Failed("{run} failed", run=outcome.run_id)
    metric = experiment.launcher.metric
    if not metric or outcome.action not in {Action.TRAINED, Action.FINISHED}:
        return outcome
    metrics = RunDir(Path(outcome.run_dir)).record().result.metrics
    if metric not in metrics:
        rule = _("the result has no such metric.")
        return Refused(Problem(f"launcher.metric={metric}", rule, nearest(metric, metrics)))
    return metrics[metric]


def all_elements(overrides: Iterable[Override]) -> list[Override]:
    """Expand each sweep override into its values.

    Raises:
        truba_runner.errors.Refused: an override has no values, so the sweep would have no run.
    """
    expanded: list[Override] = []
    for override in overrides:
        try:
            own = list(elements(override))
        except ValueError as error:
            rule = _("its values cannot be listed: {error}.", error=error)
            raise Refused(Problem(str(override.input_line), rule, _("Correct it."))) from error
        if not own:
            remedy = _("Give at least one; glob(…) matches files of a config group, and at least one file must match.")
            raise Refused(Problem(str(override.input_line), _("it has no values."), remedy))
        expanded += own
    return expanded
