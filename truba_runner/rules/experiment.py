"""Turn an experiment into a Slurm request, or refuse it with every rule that it breaks.

Pure: no disk, no network, no scheduler. The cluster's rules are data in `conf/cluster/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from truba_runner.config.backends import TRAITS
from truba_runner.config.durations import forms, parse_minutes
from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment
from truba_runner.data import hub_names
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.rules import partition as partition_rules
from truba_runner.rules.environment import problems as environment_problems
from truba_runner.rules.gpus import precision
from truba_runner.rules.names import problems as name_problems
from truba_runner.rules.sbatch import options, variables
from truba_runner.rules.sbatch import problems as sbatch_rules
from truba_runner.rules.search import problems as search_problems
from truba_runner.rules.search import warnings as search_warnings
from truba_runner.rules.site import place
from truba_runner.rules.site.here import Here
from truba_runner.rules.training import batch_problems, problems
from truba_runner.rules.values import at_least
from truba_runner.slurm.request import Request, derive

# A job with a shorter time limit may spend most of it on starting.
_SHORT_MINUTES = 5
# A submitting machine of which nothing is known.
NOWHERE = Here()


@dataclass(frozen=True)
class Plan:
    """A request that breaks no rule, and warnings for the user."""

    request: Request
    warnings: tuple[str, ...]


def plan(experiment: Experiment, here: Here = NOWHERE) -> Plan:
    """Check an experiment against all rules and return its plan; `here`: the machine from which it is submitted.

    Raises:
        Refused: the experiment breaks rules; contains all of them, each with its remedy.
    """
    broken = [*_experiment_problems(experiment)]
    if experiment.cluster.scheduler == "slurm":
        broken += partition_rules.problems(experiment, here)
        broken += [*sbatch_rules.problems(experiment), *precision.problems(experiment)]
    else:
        broken += _local_problems(experiment)
    if broken:
        raise Refused(*broken)
    request = derive(experiment)
    warnings = [*_warnings(experiment, request, here), *_of_slurm(experiment, request, here.shell)]
    return Plan(request, tuple(warnings))


def _experiment_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report problems that do not depend on the cluster."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", experiment.name):
        yield Problem(
            f"name={experiment.name}",
            _("a run's directory and job are named after it: letters, digits, '_', '.' and '-' only."),
            _("Choose another name."),
        )
    yield from name_problems(experiment)
    if experiment.job.backend not in TRAITS:
        yield Problem(
            f"job.backend={experiment.job.backend}",
            _("there is no such backend in truba_runner/training/."),
            nearest(experiment.job.backend, TRAITS),
        )
    sources = experiment.data.sources
    if sources and experiment.data.name not in sources:
        yield Problem(
            f"data.name={experiment.data.name}",
            _("the experiment has no such data (data.sources)."),
            nearest(experiment.data.name, sources),
        )
    yield from hub_names.problems(experiment.data)
    yield from at_least("resources.nodes", experiment.resources.nodes, 1)
    yield from at_least("resources.gpus", experiment.resources.gpus, 0)
    yield from at_least("train.epochs", experiment.train.epochs, 1)
    yield from at_least("train.batch_size", experiment.train.batch_size, 1)
    yield from at_least("train.seed", experiment.train.seed, 0)
    yield from problems(experiment)
    yield from search_problems(experiment)
    yield from environment_problems(experiment)
    try:
        time_minutes = parse_minutes(experiment.resources.time)
    except ValueError as error:
        yield Problem(f"resources.time={experiment.resources.time}", f"{error}.", forms())
    else:
        yield from at_least("resources.time", time_minutes, 1)
        yield from _segment_problems(experiment, time_minutes)


def _segment_problems(experiment: Experiment, time_minutes: int) -> Iterator[Problem]:
    resources = experiment.resources
    if not resources.segment:
        return
    received = f"resources.segment={resources.segment}"
    try:
        minutes = parse_minutes(resources.segment)
    except ValueError as error:
        yield Problem(received, f"{error}.", forms())
        return
    if minutes < _SHORT_MINUTES:
        yield Problem(
            received,
            _("a job shorter than {least} minutes starts and saves, but makes no progress.", least=_SHORT_MINUTES),
            _("Set resources.segment={least} (minutes) or more.", least=_SHORT_MINUTES),
        )
    elif -(-time_minutes // minutes) > resources.max_requeues + 1:
        yield Problem(
            received,
            _(
                "resources.time={time} takes more jobs of this length than resources.max_requeues={most} allows.",
                time=resources.time,
                most=resources.max_requeues,
            ),
            _("Set a larger resources.segment or resources.max_requeues."),
        )


def _local_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.resources.nodes > 1:
        yield Problem(
            f"resources.nodes={experiment.resources.nodes}",
            _("a local run uses this machine only."),
            _("Leave resources.nodes out, or choose a cluster with cluster=NAME."),
        )
    traits = TRAITS.get(experiment.job.backend)
    if traits and traits.task_per_gpu and experiment.resources.gpus > 1:
        yield Problem(
            f"resources.gpus={experiment.resources.gpus}",
            _(
                "the {backend} backend runs one process per GPU, and a local run is one process.",
                backend=experiment.job.backend,
            ),
            _("Set resources.gpus=1, or choose a cluster with cluster=NAME."),
        )
    yield from batch_problems(experiment)


def _warnings(experiment: Experiment, request: Request, here: Here) -> Iterator[str]:
    cluster = experiment.cluster
    yield from search_warnings(experiment)
    yield from precision.warnings(experiment)
    if request.mail_type and cluster.scheduler != "slurm":
        yield _(
            "resources.mail_type and mail_user have no effect: Slurm sends the mails, and this run does not use Slurm."
        )
    if cluster.scheduler == "slurm" and request.time_minutes < _SHORT_MINUTES:
        yield _(
            "resources.time={time} is short: each start first imports the framework and reads the data, and Slurm "
            "signals it to save {signal} s before the limit, or up to 30 s earlier. A run that makes no progress in "
            "three starts is stopped. Set resources.time={least} (minutes) or more.",
            time=experiment.resources.time,
            signal=request.signal_seconds,
            least=_SHORT_MINUTES,
        )
    if cluster.account_cores and request.total_cores > cluster.account_cores:
        yield _(
            "{cores} cores are more than the {most} that an account may use at once (cluster.account_cores): the job "
            "may stay pending for ever, with the reason AssocGrpCpuLimit.",
            cores=request.total_cores,
            most=cluster.account_cores,
        )
    if request.partition in cluster.partitions:
        yield from place.warnings(experiment, asked_for(experiment), here)


def _of_slurm(experiment: Experiment, request: Request, shell: Mapping[str, str]) -> Iterator[str]:
    """Warn of the cost of whole nodes, of a site without requeues, and of variables of sbatch in the shell."""
    cluster = experiment.cluster
    if cluster.scheduler != "slurm":
        if keys := options.used_keys(experiment):
            yield _("{keys}: no effect, as this run does not use Slurm.", keys=", ".join(keys))
        return
    yield from variables.warnings(shell, request)
    whole = asked_for(experiment).cores_per_node
    if request.exclusive and whole > request.cores:
        yield _(
            "resources.exclusive=true: the account is charged for all {whole} cores of a node, not for {cores}.",
            whole=whole,
            cores=request.cores,
        )
    if not request.requeue:
        yield _(
            "{cluster} does not requeue jobs: if the run is not finished after resources.time={time}, it saves its "
            "state and ends, and the same command resumes it.",
            cluster=cluster.name,
            time=experiment.resources.time,
        )
