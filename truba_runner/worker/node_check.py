"""Check a job's nodes before it trains, and leave a bad one: `python -m truba_runner.worker.node_check RUN_DIR`.

In the batch script. With several nodes, standard input has what `nodes.look` printed on each.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.nodes import leave, look
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.look import Look
from truba_runner.nodes.subject import Subject, subject_of
from truba_runner.runs.events import Event, Kind
from truba_runner.slurm import client, hostlist, job_environment
from truba_runner.slurm.client import NODE_LEFT
from truba_runner.storage import private


def main(arguments: list[str]) -> int:
    """Check the nodes; return `NODE_LEFT` if the job must not train."""
    subject = subject_of(arguments)
    if subject is None or private.refused([run.path for run in subject.runs]):
        return 0
    looks, faults = _looks(subject)
    here = job_environment.current()
    for one in looks:
        event = Event(Kind.LOOKED, one.time, here.job_id, node=one.node, seconds=one.seconds, seen=one.seen)
        for run in subject.runs:
            with suppress(OSError):
                run.append_submission(event, durable=False)
        if one.node not in {fault.node for fault in faults}:
            leave.healthy(subject.experiment, one.node)
    if not faults:
        return 0
    try:
        leave.leave(subject.runs, here, subject.experiment, faults)
    except (Failed, client.SlurmError) as error:
        _fail(subject, here, error)
    return NODE_LEFT


def _looks(subject: Subject) -> tuple[list[Look], list[Fault]]:
    """Return what was seen on each node that answered, and all faults."""
    names = hostlist.expand(os.environ["SLURM_JOB_NODELIST"])
    if len(names) == 1:
        here = look.look(subject.experiment)
        return [here], [here.fault] if here.fault else []
    arrived = {one.node: (one, time.time()) for line in sys.stdin if (one := look.from_line(line))}
    if not arrived:
        print_error("the nodes could not be checked; the training starts")
        return [], []
    looks = [one for one, _when in arrived.values()]
    silent = [name for name in names if name not in arrived]
    words = _("the node did not answer within {seconds:g} s", seconds=subject.experiment.cluster.node_check.seconds)
    faults = [one.fault for one in looks if one.fault]
    faults += [Fault(name, look.NO_ANSWER, words, time.time()) for name in silent]
    late = {name: one.time - when for name, (one, when) in arrived.items()}
    return looks, [*faults, *_clocks(late, subject.experiment.cluster.node_check.clock_seconds)]


def _clocks(late: Mapping[str, float], most: float) -> list[Fault]:
    """Return the faults of nodes whose clock differs from the others' (their median; of two, nobody can say which)."""
    if len(late) < 3:
        return []
    others = statistics.median(late.values())
    return [
        Fault(
            name, "clock", _("the clock differs from the other nodes' by {seconds:.0f} s", seconds=abs(by)), time.time()
        )
        for name, by in ((name, own - others) for name, own in late.items())
        if abs(by) > most
    ]


def _fail(subject: Subject, here: job_environment.Allocation, error: Exception) -> None:
    """Record the runs as failed."""
    # Imported only here, as it takes a third of a second.
    from truba_runner.runs.progress import Progress
    from truba_runner.worker.run import failed

    for run in subject.runs:
        failed(run, here, Progress(run, here.job_id), error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
