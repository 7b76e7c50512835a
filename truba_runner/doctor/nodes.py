"""Check the list of bad nodes: how many are left out, and whether a shared list can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from truba_runner.doctor import NOTE, OK, WARNING, Finding, Patient
from truba_runner.language import _, counted
from truba_runner.nodes import exclusion
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError


def bad(patient: Patient) -> Iterator[Finding]:
    """Yield how many nodes jobs leave out as bad, partitions that lose most of theirs, and a useless shared list."""
    cluster, subject = patient.experiment.cluster, _("bad nodes")
    if cluster.scheduler != "slurm":
        return
    if cluster.bad_nodes and not os.access(cluster.bad_nodes, os.R_OK | os.W_OK):
        says = _("{file}, the list that you share (cluster.bad_nodes), is missing or you cannot write it",
                 file=cluster.bad_nodes)  # fmt: skip
        remedy = _("Jobs add nothing to it. Create it for your group: install -m 660 -g GROUP /dev/null {file}",
                   file=cluster.bad_nodes)  # fmt: skip
        yield Finding(WARNING, subject, says, remedy)
    names = {entry.node for entry in exclusion.listed(cluster)}
    if not names:
        yield Finding(OK, subject, _("no node is known as bad"))
        return
    says = counted("{count} node is left out by jobs: {names}", "{count} nodes are left out by jobs: {names}",
                   len(names), names=", ".join(sorted(names)))  # fmt: skip
    yield Finding(NOTE, subject, says, _("truba nodes shows why."))
    nodes = []
    with suppress(SlurmError):  # Another check reports that Slurm does not answer.
        nodes = queries.every_node()
    for partition in cluster.partitions:
        its = {node.name for node in nodes if node.partition == partition}
        if 2 * len(its & names) > len(its):
            says = _("{count} of the {all} nodes of {partition} are known as bad", count=len(its & names),
                     all=len(its), partition=partition)  # fmt: skip
            remedy = _(
                "Tell the site's support. If they work again: truba nodes --forget NODE. If they never were bad, the "
                "job may be."
            )
            yield Finding(WARNING, subject, says, remedy)
