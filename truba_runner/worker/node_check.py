"""Check a job's node before it trains, and leave a bad one. Jobs on several nodes: `several_nodes`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from truba_runner.config.schema import Experiment
from truba_runner.nodes import leave, look
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.look import Look
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import job_environment


def check(runs: Sequence[RunDir], experiment: Experiment, here: job_environment.Allocation) -> None:
    """Check this node for a job on one node.

    Raises:
        truba_runner.errors.Failed: as `leave.leave`.
        truba_runner.slurm.client.SlurmError: as `leave.leave`.
    """
    if here.on_slurm and not here.packed and experiment.cluster.node_check.enabled and here.nodes == 1:
        seen = look.look(experiment)
        act_on(runs, experiment, here, [seen], [seen.fault] if seen.fault else [])


def act_on(
    runs: Sequence[RunDir],
    experiment: Experiment,
    here: job_environment.Allocation,
    looks: Sequence[Look],
    faults: Sequence[Fault],
) -> None:
    """Record what was seen on each node, and leave if one is bad.

    Raises:
        truba_runner.errors.Failed: as `leave.leave`.
        truba_runner.slurm.client.SlurmError: as `leave.leave`.
    """
    for seen in looks:
        event = Event(Kind.LOOKED, seen.time, here.job_id, node=seen.node, seconds=seen.seconds, seen=seen.seen)
        for run in runs:
            with suppress(OSError):
                run.append_submission(event, durable=False)
        if seen.node not in {fault.node for fault in faults}:
            leave.healthy(experiment, seen.node)
    if faults:
        leave.leave(runs, here, experiment, faults)
