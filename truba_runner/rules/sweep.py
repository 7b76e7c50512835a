"""Validate sweep settings, and return the resources of a job that trains several runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from truba_runner.config import lr_find
from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Experiment, Sweep
from truba_runner.errors import Problem
from truba_runner.language import _
from truba_runner.rules import lr_find as rules_lr_find
from truba_runner.rules.values import at_least
from truba_runner.slurm.request import Request


def allocation(request: Request, experiment: Experiment) -> Request:
    """Return the request of a job that trains `sweep.pack` runs in parallel; `request` is that of one run."""
    if experiment.sweep.pack == 1:
        return request
    times = _times(experiment)
    return replace(
        request,
        gpus=request.gpus * times,
        tasks_per_node=1,
        cpus_per_task=request.cores * times,
        memory_gb=request.memory_gb * times if request.memory_gb else None,
    )


def _times(experiment: Experiment) -> int:
    """Return how many times one run's resources a packed job has; runs without GPUs share one run's cores."""
    shares = experiment.sweep.share_gpus or not experiment.resources.gpus
    return 1 if shares else experiment.sweep.pack


def problems(experiment: Experiment, request: Request) -> Iterator[Problem]:
    """Report problems of the sweep's settings; `request` is the valid request of one run."""
    sweep = experiment.sweep
    yield from at_least("sweep.max_parallel", sweep.max_parallel, 1, _("Leave it out."))
    yield from at_least("sweep.pack", sweep.pack, 1, _("Leave it out to train one run per job."))
    if sweep.max_parallel is not None and 1 <= sweep.max_parallel < sweep.pack:
        yield Problem(
            f"sweep.max_parallel={sweep.max_parallel}",
            _("a job trains {count} runs at once (sweep.pack).", count=sweep.pack),
            _(
                "Set sweep.pack={most} or less, or sweep.max_parallel={count} or more.",
                most=sweep.max_parallel,
                count=sweep.pack,
            ),
        )
    if sweep.kind == lr_find.KIND:
        yield from _finder_problems(experiment)
        yield from rules_lr_find.time_problems(experiment)
    elif sweep.pack > 1 and experiment.cluster.scheduler == "slurm":
        yield from _packing_problems(experiment, request)


def warnings(experiment: Experiment) -> Iterator[str]:
    """Return warnings about settings of the sweep that have no effect."""
    sweep, ordinary = experiment.sweep, Sweep()
    keys = [key for key in ("max_parallel", "canary", "pack") if getattr(sweep, key) != getattr(ordinary, key)]
    if keys and experiment.cluster.scheduler != "slurm":
        named = ", ".join(f"sweep.{key}" for key in keys)
        yield _("{keys}: no effect, as on this machine the runs train one after the other.", keys=named)
    if sweep.finder_time and sweep.kind != lr_find.KIND:
        yield _(
            "sweep.finder_time={time}: no effect, as only sweep=lr_find starts a finder before each run.",
            time=sweep.finder_time,
        )


def _finder_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report settings that conflict with a finder before each run: each finder starts exactly one run."""
    sweep = experiment.sweep
    if sweep.canary:
        rule = _("with sweep=lr_find a finder runs before each run.")
        yield Problem("sweep.canary=true", rule, _("Leave it out: a run whose finder fails does not start."))
    if sweep.pack > 1:
        rule = _("with sweep=lr_find each run starts when its own finder is done.")
        remedy = _(
            "Leave sweep.pack out; or leave sweep=lr_find out and set train.lr_find: then each run finds its rate "
            "itself."
        )
        yield Problem(f"sweep.pack={sweep.pack}", rule, remedy)


def _packing_problems(experiment: Experiment, request: Request) -> Iterator[Problem]:
    received, name = f"sweep.pack={experiment.sweep.pack}", request.partition
    if request.nodes > 1:
        rule = _("a run of {count} nodes cannot share them with other runs.", count=request.nodes)
        yield Problem(received, rule, _("Leave sweep.pack out."))
        return
    if request.tasks_per_node > 1:
        yield Problem(
            received,
            _(
                "the {backend} backend starts a process for each of a run's {count} GPUs.",
                backend=experiment.job.backend,
                count=request.tasks_per_node,
            ),
            _("Set resources.gpus=1, or leave sweep.pack out."),
        )
        return
    facts, whole = facts_of(experiment.cluster, name, request.constraint), allocation(request, experiment)
    for requested, one, has, unit in (
        (whole.gpus, request.gpus, facts.gpus_per_node, _("GPUs")),
        (whole.cores, request.cores, facts.cores_per_node, _("cores")),
        (whole.node_memory_gb or 0, request.node_memory_gb or 0, facts.memory_gb, "GB"),
    ):
        if has and requested > has:
            less = _("Set sweep.pack={most} or less.", most=int(has // one))
            share = _(
                "Set sweep.pack={most} or less, or let the runs share GPUs with sweep.share_gpus=true.",
                most=int(has // one),
            )
            yield Problem(
                received,
                _(
                    "these runs together ask for {asked:g} {unit}, and a node of {partition} has {has:g}.",
                    asked=requested,
                    unit=unit,
                    partition=name,
                    has=has,
                ),
                share if request.gpus else less,
            )
            return
