"""Leave a bad node: put the job back into the queue without it, and the waiting rest of its array too.

The order matters (measured with Slurm 22.05, 24.11 and 26.05). The array's waiting tasks come first, as one of them
takes the node as soon as this job leaves it. Slurm refuses the list for a running job, so the requeue is before it. A
requeue ends this job's processes with SIGTERM, scontrol too, so they ignore it; SIGKILL comes later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from truba_runner.config.partitions import features_in
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.log import print_error
from truba_runner.nodes import ledger
from truba_runner.nodes.fault import Fault
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import capacity, client, commands, hostlist, queries, request
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training.interrupt import ignore_signals

# After this many different bad nodes in a row the job itself may be the fault.
MOST_NODES = 3
# The same node may come again if Slurm did not take the list.
_MOST_STARTS = 2 * MOST_NODES
# How long Slurm may take to end a requeued job.
_KILL_SECONDS = 600.0


def leave(runs: Sequence[RunDir], here: Allocation, experiment: Experiment, faults: Sequence[Fault]) -> None:
    """Record the faults and put the job back into the queue without these nodes; return once Slurm has not ended it.

    Raises:
        truba_runner.errors.Failed: the runs met `MOST_NODES` bad nodes in a row, the site does not requeue jobs, or
            the job cannot run elsewhere.
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not allow the requeue.
    """
    cluster = experiment.cluster
    bad: set[str] = set()
    for fault in faults:
        bad |= ledger.record_bad(Path(cluster.runs_folder), _shared(experiment), fault)
        print_error("node {node} is bad: {check}: {message}", **_words(fault))
        event = Event(Kind.BAD_NODE, fault.time, here.job_id, node=fault.node, check=fault.check, message=fault.message)
        for run in runs:
            with suppress(OSError):  # The shared disk may be what is bad.
                run.append_submission(event)
    left = [*_left_before(runs[0], faults), *faults]
    nodes = {fault.node for fault in left}
    if len(nodes) >= MOST_NODES or len(left) >= _MOST_STARTS:
        reasons = "; ".join(dict.fromkeys(f"{fault.node}: {fault.check}: {fault.message}" for fault in left))
        raise Failed(
            "{count} different nodes in a row were bad, so the fault may be the job's: {reasons}",
            count=len(nodes),
            reasons=reasons,
        )
    asked = request.derive(experiment)
    if pinned := sorted(nodes & set(_expanded(asked.nodelist))):
        raise Failed("resources.nodelist names bad nodes: {nodes}", nodes=", ".join(pinned))
    if not cluster.requeue:
        raise Failed(
            "node {node} is bad: {check}: {message}. This site does not requeue jobs: the same command submits the run "
            "again, without this node.",
            **_words(faults[-1]),
        )
    ignore_signals()
    excluded = _most_possible(asked, bad | nodes, left, here.job_id)
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        with suppress(client.SlurmError):  # It complains of the tasks that run.
            commands.exclude(array, excluded)
    commands.requeue(here.job_id)
    commands.exclude(here.job_id, excluded)
    print_error("back in the queue, without {nodes}", nodes=", ".join(excluded))
    time.sleep(_KILL_SECONDS)


def _shared(experiment: Experiment) -> str:
    """Return the file of bad nodes that colleagues share; empty if there is none."""
    return str(getattr(experiment.cluster, "bad_nodes", ""))


def healthy(experiment: Experiment, node: str) -> None:
    """Record that a node has passed all checks."""
    with suppress(OSError):
        ledger.record_healthy(Path(experiment.cluster.runs_folder), _shared(experiment), node)


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


def _most_possible(asked: request.Request, bad: Iterable[str], left: Sequence[Fault], job_id: str) -> list[str]:
    """Return the nodes to exclude: all bad ones, those that the job excludes already, but the oldest if too many.

    A job for which too few nodes are left would wait for ever.
    """
    in_use = capacity.nodes_in_use(asked.partition)
    own = set(_expanded(asked.exclude))
    already = {name for job in queries.shown("job", job_id) for name in _expanded(job.get("ExcNodeList", ""))}
    wanted = features_in(asked.constraint)
    fit = {name for name, features in in_use.items() if not wanted or features & set(wanted)}
    by_age = {fault.node: number for number, fault in enumerate(left)}
    # One unknown name, such as one that the site has since renamed, and Slurm would refuse the whole list.
    known = {name for name in (set(bad) | already) - own if name in in_use}
    excluded = sorted(known, key=lambda name: (by_age.get(name, -1), name))
    while excluded and len(fit - own - set(excluded)) < asked.nodes:
        excluded.pop(0)
    return sorted({*excluded, *own})
