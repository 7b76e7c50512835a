"""Replace `resources.time=auto` and `resources.partition=auto` with values before the rules are checked."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from truba_runner.code.network_size import Sizes
from truba_runner.config.durations import slurm_time
from truba_runner.config.schema import Experiment, Resources
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, counted
from truba_runner.slurm import client
from truba_runner.submission.partition_choice import AT_ONCE_SECONDS, Offer, offers, refuse_whatever_its_time, suited
from truba_runner.submission.time_limit import proposed

AUTO = "auto"


class Automatic:
    """Resolver of `auto` that caches its answers: runs of a sweep with equal requests share the first run's."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        """Start with an empty cache; `sizes`: the sizes of the command's networks."""
        self._answers: dict[str, Resources] = {}
        self._sizes = sizes or Sizes()

    def settled(self, experiment: Experiment, job_file: Path) -> Experiment:
        """Return the experiment without `auto`; on a cluster without a queue, with the default time and no partition.

        Raises:
            truba_runner.errors.Refused: no partition accepts the job, or no earlier run exists to estimate the time.
            truba_runner.errors.Failed: Slurm does not answer.
        """
        if AUTO not in {experiment.resources.time, experiment.resources.partition}:
            return experiment
        train = experiment.train
        fits = (
            suited(experiment, self._sizes.of(experiment, job_file)) if experiment.resources.partition == AUTO else []
        )
        # All that the estimated time and the choice of a partition depend on.
        key = repr((
            experiment.name, experiment.data.name, experiment.resources, train.epochs, train.recipe,
            experiment.job.backend, experiment.environment, fits,
        ))  # fmt: skip
        if key not in self._answers:
            self._answers[key] = _settled(experiment, job_file, self._sizes)
        return replace(experiment, resources=self._answers[key])


def _settled(experiment: Experiment, job_file: Path, sizes: Sizes) -> Resources:
    if experiment.cluster.scheduler != "slurm":
        # Without a queue there is no partition to choose, and no time limit ends a run.
        return replace(experiment.resources, partition="", time=Resources().time)
    resources = experiment.resources
    if resources.time == AUTO:
        # The search for earlier runs uses the experiment's values, so these must be valid first.
        refuse_whatever_its_time(experiment)
        proposal = proposed(experiment)
        resources = replace(resources, time=slurm_time(proposal.minutes))
        print(f"resources.time={resources.time}: {proposal.because}", file=sys.stderr)
    if resources.partition == AUTO:
        resources = _with_partition(replace(experiment, resources=resources), job_file, sizes)
    return resources


def _with_partition(experiment: Experiment, job_file: Path, sizes: Sizes) -> Resources:
    try:
        all_offers = offers(experiment, job_file, sizes)
    except client.SlurmError as error:
        message = _(
            "Slurm does not answer ({message}), so it is not known which partition would start the job first",
            message=error.message,
        )
        raise Failed(message) from error
    best = next((offer for offer in all_offers if offer.automatic and offer.request), None)
    if best is None or best.start is None:
        why = "; ".join(f"{_name(offer)}: {offer.refusal.rstrip('.')}" for offer in all_offers)
        rule = _("no partition accepts the job. {why}.", why=why)
        raise Refused(Problem("resources.partition=auto", rule, _("Request other resources.")))
    wait_seconds = best.start - time.time()
    message = f"resources.partition={_name(best)}"
    if wait_seconds < AT_ONCE_SECONDS:
        print(_("{choice}: Slurm expects to start it at once", choice=message), file=sys.stderr)
    else:
        minutes = round(wait_seconds / 60)
        print(
            counted("{choice}: Slurm expects to start it in {count} minute",
                    "{choice}: Slurm expects to start it in {count} minutes", minutes, choice=message),
            file=sys.stderr,
        )  # fmt: skip
    return replace(experiment.resources, partition=best.partition, constraint=best.constraint)


def _name(offer: Offer) -> str:
    return f"{offer.partition} ({offer.constraint})" if offer.constraint else offer.partition
