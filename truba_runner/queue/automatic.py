"""`resources.time=auto` and `resources.partition=auto`: what stands for them, before anything is checked."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from truba_runner import scheduler
from truba_runner.config import Experiment, Resources
from truba_runner.durations import slurm_time
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, counted
from truba_runner.queue.offers import AT_ONCE_SECONDS, Offer, offers, refuse_whatever_its_time
from truba_runner.queue.time_limit import proposed

AUTO = "auto"


class Automatic:
    """Settles experiments; of a sweep's runs that ask for the same, the first one's answer counts for all."""

    def __init__(self) -> None:
        """Knows no answer yet."""
        self._answers: dict[str, Resources] = {}

    def settled(self, experiment: Experiment, job_file: Path) -> Experiment:
        """The experiment without `auto`; as it is where nothing in it is, and on a cluster without a queue.

        Raises:
            Refused: no partition takes the job, or there is no earlier run to go by.
            Failed: Slurm does not answer.
        """
        if AUTO not in {experiment.resources.time, experiment.resources.partition}:
            return experiment
        train = experiment.train
        # What earlier runs are compared by, and what is asked of a partition.
        key = repr((experiment.name, experiment.data.name, experiment.resources, train.epochs, train.recipe))
        if key not in self._answers:
            self._answers[key] = _settled(experiment, job_file)
        return replace(experiment, resources=self._answers[key])


def _settled(experiment: Experiment, job_file: Path) -> Resources:
    if experiment.cluster.scheduler != "slurm":
        # No one waits here, and nothing ends a run.
        return replace(experiment.resources, partition="", time=Resources().time)
    resources = experiment.resources
    if resources.time == AUTO:
        # Earlier runs are looked for by what it says, which has to make sense for that.
        refuse_whatever_its_time(experiment)
        proposal = proposed(experiment)
        resources = replace(resources, time=slurm_time(proposal.minutes))
        print(f"resources.time={resources.time}: {proposal.because}", file=sys.stderr)
    if resources.partition == AUTO:
        resources = _with_partition(replace(experiment, resources=resources), job_file)
    return resources


def _with_partition(experiment: Experiment, job_file: Path) -> Resources:
    try:
        found = offers(experiment, job_file)
    except scheduler.SlurmError as error:
        told = _("Slurm does not answer ({message}), so the soonest partition is not known", message=error.message)
        raise Failed(told) from error
    best = next((offer for offer in found if offer.automatic and offer.request), None)
    if best is None or best.start is None:
        why = "; ".join(f"{_name(offer)}: {offer.refusal.rstrip('.')}" for offer in found)
        rule = _("no partition takes the job. {why}.", why=why)
        raise Refused(Problem("resources.partition=auto", rule, _("Change what it asks for.")))
    wait_seconds = best.start - time.time()
    told = f"resources.partition={_name(best)}"
    if wait_seconds < AT_ONCE_SECONDS:
        print(_("{choice}: Slurm expects to start it at once", choice=told), file=sys.stderr)
    else:
        minutes = round(wait_seconds / 60)
        print(
            counted("{choice}: Slurm expects to start it in {count} minute",
                    "{choice}: Slurm expects to start it in {count} minutes", minutes, choice=told),
            file=sys.stderr,
        )  # fmt: skip
    return replace(experiment.resources, partition=best.partition, constraint=best.constraint)


def _name(offer: Offer) -> str:
    return f"{offer.partition} ({offer.constraint})" if offer.constraint else offer.partition
