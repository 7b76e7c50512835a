"""Check the nodes of a job on several before it trains: `python -m truba_runner.worker.several_nodes RUN_DIR`.

In the batch script. Standard input has the lines that `nodes.look` has printed on each node.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping

from truba_runner.config.site import NodeCheck
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.nodes import look
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.look import Look
from truba_runner.nodes.subject import subject_of
from truba_runner.slurm import client, hostlist, job_environment
from truba_runner.slurm.client import NODE_LEFT
from truba_runner.storage import private
from truba_runner.worker import node_check
from truba_runner.worker.run import fail_all


def main(arguments: list[str]) -> int:
    """Check the nodes; return `NODE_LEFT` if the job must not train."""
    subject = subject_of(arguments)
    if subject is None or private.refused([run.path for run in subject.runs]):
        return 0
    here = job_environment.current()
    looks, faults = seen_on_several(subject.experiment.cluster.node_check, sys.stdin)
    try:
        node_check.act_on(subject.runs, subject.experiment, here, looks, faults)
    except (Failed, client.SlurmError) as error:
        fail_all(subject.runs, here, error)
        return NODE_LEFT
    return 0


def seen_on_several(limits: NodeCheck, lines: Iterable[str]) -> tuple[list[Look], list[Fault]]:
    """Return what was seen on each node that answered, and all faults."""
    names = hostlist.expand(os.environ["SLURM_JOB_NODELIST"])
    arrived = {seen.node: (seen, time.time()) for line in lines if (seen := look.from_line(line))}
    if not arrived:
        print_error("the nodes could not be checked; the training starts")
        return [], []
    looks = [seen for seen, _when in arrived.values()]
    silent = [name for name in names if name not in arrived]
    words = _("the node did not answer within {seconds:g} s", seconds=limits.seconds)
    faults = [seen.fault for seen in looks if seen.fault]
    faults += [Fault(name, look.NO_ANSWER, words, time.time()) for name in silent]
    late = {name: seen.time - when for name, (seen, when) in arrived.items()}
    return looks, [*faults, *_clocks(late, limits.clock_seconds)]


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
