"""Determine for each partition whether an experiment fits, when its job would start, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from truba_runner.code.network_size import Sizes
from truba_runner.config.durations import parse_minutes
from truba_runner.config.identity import run_id
from truba_runner.config.partitions import gpu_models
from truba_runner.config.schema import Experiment, Partition
from truba_runner.environment import probe
from truba_runner.errors import Problem, Refused
from truba_runner.language import _
from truba_runner.rules.experiment import plan
from truba_runner.rules.gpus import builds, memory, precision
from truba_runner.rules.gpus.memory import Size
from truba_runner.rules.site.here import Here
from truba_runner.rules.site.place import elsewhere
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import capacity, client, commands
from truba_runner.slurm.request import Request
from truba_runner.submission import here
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

# A start within this time counts as immediate: the scheduler itself runs no more often.
AT_ONCE_SECONDS = 60


@dataclass(frozen=True)
class Offer:
    """Offer of a partition, or of one family of nodes in a mixed partition; it rejects the job if `request` is None."""

    partition: str
    constraint: str
    request: Request | None = None
    # Seconds since 1970; None: Slurm gives no estimate.
    start: float | None = None
    free_gpus: int | None = None
    # Whether resources.partition=auto may choose it.
    automatic: bool = True
    # Why it rejects the job: the broken rules, or Slurm's message.
    refusal: str = ""
    # Nodes that the job would leave out because they are known as bad.
    left_out: Sequence[str] = ()
    # Cost if the run needs all of its time, in however many jobs.
    core_hours: float = 0.0


@dataclass(frozen=True)
class _Known:
    """What is known of the job, the cluster and this machine while partitions are compared."""

    job_file: Path
    size: Size | None
    environment: probe.Found
    free_gpus: Mapping[tuple[str, str], int]
    most_cores: int
    machine: Here


def offers(experiment: Experiment, job_file: Path, sizes: Sizes | None = None) -> list[Offer]:
    """Return the offers of all partitions, the soonest start first, those that reject the job last.

    `sizes`: the sizes of networks that the command has counted so far.

    Raises:
        truba_runner.errors.Refused: the experiment breaks a rule on every partition.
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    candidates = list(_candidates(experiment))
    refuse_what_is_wrong_anywhere(candidates)
    known = _Known(
        job_file, (sizes or Sizes()).of(experiment, job_file), probe.known(experiment), capacity.free_gpus(),
        capacity.core_limit(experiment.resources.account), here.look(),
    )  # fmt: skip
    found = [_offer(candidate, known) for candidate in candidates]
    now = time.time()
    return sorted(found, key=lambda offer: _order(offer, now))


def suited(experiment: Experiment, size: Size | None) -> list[bool]:
    """Return for each candidate whether its GPUs support the experiment's precision and have room for its network."""
    return [
        not any((*precision.problems(one), *(memory.problems(one, size) if size else ())))
        for one in _candidates(experiment)
    ]


def refuse_whatever_its_time(experiment: Experiment) -> None:
    """Refuse an experiment without a time limit that no limit could make valid, on its partition or, if auto, on any.

    Raises:
        truba_runner.errors.Refused: it breaks a rule that does not depend on its time.
    """
    known = experiment.cluster.partitions
    candidates = [experiment] if experiment.resources.partition in known else _candidates(experiment)

    def in_any_time(one: Experiment) -> Experiment:
        longest = known[one.resources.partition].max_time
        return replace(one, resources=replace(one.resources, time=longest, segment="", signal_seconds=None))

    refuse_what_is_wrong_anywhere([in_any_time(one) for one in candidates])


def refuse_what_is_wrong_anywhere(candidates: Sequence[Experiment]) -> None:
    """Refuse once, with its remedy, what is wrong on every partition, such as an invalid time.

    Raises:
        truba_runner.errors.Refused: all candidates break the same rule.
    """
    broken: list[Sequence[Problem]] = []
    for candidate in candidates:
        try:
            plan(candidate)
        except Refused as refused:
            broken.append(refused.problems)
        else:
            return
    if common := [problem for problem in (broken or [()])[0] if all(problem in others for others in broken)]:
        raise Refused(*common)


def _order(offer: Offer, now: float) -> tuple[bool, float, bool, float]:
    """Sort key: soonest first; among immediate starts, those that `auto` may choose first, then the cheapest."""
    if offer.request is None or offer.start is None:
        return (True, 0.0, True, 0.0)
    return (False, max(offer.start, now + AT_ONCE_SECONDS), not offer.automatic, offer.core_hours)


def _candidates(experiment: Experiment) -> Iterator[Experiment]:
    """Yield the experiment for every partition, and for every kind of node where a job must choose one."""
    for name, partition in experiment.cluster.partitions.items():
        for constraint in _constraints(partition, experiment.resources.constraint):
            resources = replace(experiment.resources, partition=name, constraint=constraint)
            yield replace(experiment, resources=resources)


def _constraints(partition: Partition, asked: str) -> Sequence[str]:
    models = [model for model in gpu_models(partition, "") if model in partition.features]
    choice = partition.families or (partition.features if partition.feature_required else models)
    return [asked] if asked else choice or [""]


def _offer(experiment: Experiment, known: _Known) -> Offer:
    resources, most_cores = experiment.resources, known.most_cores
    facts = experiment.cluster.partitions[resources.partition]
    free_here = known.free_gpus.get((resources.partition, resources.constraint))
    offer = Offer(resources.partition, resources.constraint, free_gpus=free_here, automatic=facts.automatic)
    try:
        request = plan(experiment).request
        _refuse_unfit(experiment, known)
    except Refused as refused:
        return replace(offer, refusal=" ".join(f"{one.received}: {one.rule}" for one in refused.problems))
    if problem := elsewhere(experiment.cluster, resources.partition, known.machine):
        return replace(offer, refusal=problem.rule)
    if 0 < most_cores < request.total_cores:
        account, asked = resources.account, request.total_cores
        message = _("the job requests {asked} cores, and the account {account} may use {most} at once",
                 asked=asked, account=account, most=most_cores)  # fmt: skip
        return replace(offer, refusal=message)
    run = RunDir(Path(experiment.cluster.runs_folder) / run_id(experiment))
    submission = Submission(Prepared(experiment, run, request, known.job_file))
    script, left_out = submission.script(), sorted(submission.exclusion.reasons())
    try:
        hours = request.total_cores * parse_minutes(resources.time) / 60
        start = capacity.estimated_start(script)
        return replace(offer, request=request, start=start, left_out=left_out, core_hours=hours)
    except client.SlurmError as error:
        if error.transient or not error.refused:
            raise
        words, _filter = commands.words_of_refusal(error.message)
        means = commands.explained(words, experiment.cluster.refusals)
        return replace(offer, refusal=means[0] if means else words)


def _refuse_unfit(experiment: Experiment, known: _Known) -> None:
    """Refuse a partition if the frameworks have no code for its GPUs, or the network no room in their memory.

    Raises:
        truba_runner.errors.Refused: that is known to be so.
    """
    wrong = [*builds.problems(experiment, known.environment, probe.words(experiment.environment))]
    if known.size:
        wrong += memory.problems(experiment, known.size)
    if wrong:
        raise Refused(*wrong)
