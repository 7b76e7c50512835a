"""Leave a bad node: put the job back into the queue without it, and the waiting rest of its array too.

The order matters (measured with Slurm 22.05, 24.11 and 26.05). The array's waiting tasks come first, as one of them
takes the node as soon as this job leaves it. Slurm refuses the list for a running job, so the requeue is before it. A
requeue ends this job's processes with SIGTERM, scontrol too, so they ignore it; SIGKILL comes later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Refused
from truba_runner.log import print_error
from truba_runner.nodes import exclusion, ledger
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import BadNode
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client, commands, hostlist, queries, request
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training.interrupt import ignore_signals

# After this many different bad nodes in a row the job itself may be the fault.
MOST_NODES = 3
# The same node may come again if Slurm did not take the list.
_MOST_STARTS = 2 * MOST_NODES
# How long Slurm may take to end a requeued job.
_KILL_SECONDS = 600.0


def leave(runs: Sequence[RunDir], here: Allocation, experiment: Experiment, faults: Sequence[Fault]) -> NoReturn:
    """Record the faults and put the job back into the queue without these nodes; Slurm then ends this process.

    Raises:
        truba_runner.errors.Failed: the runs met `MOST_NODES` bad nodes in a row, the site does not requeue jobs, the
            job cannot run elsewhere, or Slurm has not ended it.
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not allow the requeue.
    """
    cluster = experiment.cluster
    for fault in faults:
        ledger.record_bad(Path(cluster.runs_folder), cluster.bad_nodes, fault, cluster.bad_nodes_days)
        print_error("node {node} is bad: {check}: {message}", **_words(fault))
        event = Event(Kind.BAD_NODE, fault.time, here.job_id, node=fault.node, check=fault.check, message=fault.message)
        for run in runs:
            with suppress(OSError):  # The shared disk may be what is bad.
                run.append_submission(event)
    left = [*_left_before(runs[0], faults), *faults]
    nodes = {fault.node for fault in left}
    if len(nodes) >= MOST_NODES or len(left) >= _MOST_STARTS:
        _take_off_the_list(experiment, left)
        reasons = "; ".join(dict.fromkeys(f"{fault.node}: {fault.check}: {fault.message}" for fault in left))
        raise Failed(
            "{count} different nodes in a row were bad, so the fault may be the job's: {reasons}",
            count=len(nodes),
            reasons=reasons,
        )
    if pinned := sorted(nodes & set(_expanded(experiment.resources.nodelist))):
        raise Failed("resources.nodelist names bad nodes: {nodes}", nodes=", ".join(pinned))
    if not cluster.requeue:
        raise Failed(
            "node {node} is bad: {check}: {message}. This site does not requeue jobs: the same command submits the run "
            "again, without this node.",
            **_words(faults[-1]),
        )
    ignore_signals()
    excluded = _to_exclude(experiment, left, here.job_id)
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        with suppress(client.SlurmError):  # It complains of the tasks that run.
            commands.exclude(array, excluded)
    commands.requeue(here.job_id)
    commands.exclude(here.job_id, excluded)
    print_error("back in the queue, without {nodes}", nodes=excluded)
    time.sleep(_KILL_SECONDS)
    raise Failed("Slurm has not ended the job, which is requeued, for {seconds:g} s", seconds=_KILL_SECONDS)


def healthy(experiment: Experiment, node: str) -> None:
    """Record that a node has passed all checks."""
    ledger.record_healthy(Path(experiment.cluster.runs_folder), experiment.cluster.bad_nodes, node)


def _take_off_the_list(experiment: Experiment, faults: Sequence[Fault]) -> None:
    """End the entries of nodes that nothing but this run has found bad: other jobs may get them."""
    cluster, own = experiment.cluster, {(fault.node, fault.time) for fault in faults}
    for entry in exclusion.listed(cluster):
        if own.issuperset((fault.node, fault.time) for fault in entry.faults):
            with suppress(OSError, Refused):
                ledger.forget(Path(cluster.runs_folder), cluster.bad_nodes, entry.node)


def _words(fault: Fault) -> dict[str, str]:
    return {"node": fault.node, "check": fault.check, "message": fault.message}


def _left_before(run: RunDir, now: Sequence[Fault]) -> list[Fault]:
    """Return the faults by which the run's starts before this one ended, oldest first, back to one that trained."""
    found: list[Fault] = []
    events = [event for event in run.submissions() if not _is_one_of(event, now)]
    left = True  # This start ends by a fault.
    for event in reversed(events):
        if event.kind == Kind.BAD_NODE:
            found.insert(0, Fault(event.node, event.check, event.message, event.time))
            left = True
        elif event.kind == Kind.LOOKED:  # Each start begins with it.
            left = False
        elif event.kind == Kind.INTENT or (event.kind == Kind.STARTED and not left):
            break
    return found


def _is_one_of(event: Event, faults: Sequence[Fault]) -> bool:
    return event.kind == Kind.BAD_NODE and any((event.node, event.time) == (one.node, one.time) for one in faults)


def _expanded(nodes: str) -> list[str]:
    with suppress(ValueError):
        return hostlist.expand(nodes)
    return []


def _to_exclude(experiment: Experiment, left: Sequence[Fault], job_id: str) -> str:
    """Return the nodes to exclude: those of the plan and of the user, and the bad ones that the partition can spare."""
    bad = {entry.node: entry for entry in exclusion.listed(experiment.cluster)}
    for fault in left:  # The list may be on a disk that cannot be written.
        bad.setdefault(fault.node, BadNode(fault.node, (fault,), ()))
    planned = request.derive(experiment)
    # Slurm replaces the job's list, which the user may have changed since.
    now = {name for job in queries.shown("job", job_id) for name in _expanded(job.get("ExcNodeList", ""))}
    kept = sorted({*_expanded(planned.exclude), *(now - set(bad))})
    return exclusion.chosen(replace(planned, exclude=",".join(kept)), list(bad.values()), queries.every_node()).exclude
