"""Which bad nodes a job leaves out: as many as its partition can spare, and never one that the user names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from truba_runner.config.schema import Cluster
from truba_runner.language import _
from truba_runner.nodes import ledger
from truba_runner.nodes.ledger import BadNode
from truba_runner.slurm import hostlist, queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import Node
from truba_runner.slurm.request import Request


@dataclass(frozen=True)
class Exclusion:
    """The nodes that a job must not get."""

    # As sbatch takes them: those of the request, and the bad ones that are left out.
    exclude: str
    left_out: Sequence[BadNode] = ()
    # Sentences for the user, about bad nodes that the job may get.
    warnings: Sequence[str] = ()

    def reasons(self) -> Mapping[str, str]:
        """Return what is wrong with each node that is left out."""
        return {entry.node: entry.why for entry in self.left_out}


def of_request(cluster: Cluster, request: Request) -> Exclusion:
    """Return the nodes to exclude from a request; Slurm is asked only if nodes are known as bad."""
    bad = listed(cluster) if cluster.scheduler == "slurm" else []
    if not bad:
        return Exclusion(request.exclude)
    try:
        return chosen(request, bad, queries.every_node())
    except SlurmError as error:
        return Exclusion(
            request.exclude,
            warnings=[
                _(
                    "the job may get nodes that are known as bad ({names}): Slurm does not answer which nodes it has "
                    "({message}).",
                    names=", ".join(entry.node for entry in bad),
                    message=error.message,
                )
            ],
        )


def listed(cluster: Cluster) -> list[BadNode]:
    """Return the bad nodes of a cluster's lists."""
    return ledger.bad_nodes(Path(cluster.runs_folder), cluster.bad_nodes, cluster.bad_nodes_days)


def chosen(request: Request, bad: Sequence[BadNode], nodes: Sequence[Node]) -> Exclusion:
    """Return which of the bad nodes to leave out, given all nodes that Slurm knows.

    Slurm refuses a job that excludes a name that it does not know, and lets one wait for ever that has too few nodes.
    """
    named, excluded = _names(request.nodelist), _names(request.exclude)
    usable = {node.name for node in nodes if node.partition == request.partition and _suits(node, request)} - excluded
    candidates = sorted((entry for entry in bad if entry.node in usable - named), key=lambda entry: entry.last.time)
    too_many = max(0, len(candidates) - max(0, len(usable) - request.nodes))
    kept, left_out = candidates[:too_many], candidates[too_many:]
    warnings = [
        *_warnings_of_named([entry for entry in bad if entry.node in named]),
        *_warnings_of_kept(kept, request, len(usable)),
    ]
    names = sorted(entry.node for entry in left_out)
    return Exclusion(",".join(filter(None, [request.exclude, *names])), left_out, warnings)


def _names(text: str) -> set[str]:
    with suppress(ValueError):
        return set(hostlist.expand(text)) if text else set()
    return set()


def _suits(node: Node, request: Request) -> bool:
    """Whether a node has the job's feature; of an expression of several features only Slurm knows."""
    return not re.fullmatch(r"[\w.-]+", request.constraint) or request.constraint in node.features


def _warnings_of_named(named: Sequence[BadNode]) -> Iterator[str]:
    for entry in named:
        yield _(
            "resources.nodelist names {node}, which is known as bad since {time} ({why}). truba nodes shows the list.",
            node=entry.node,
            time=_date(entry.first),
            why=entry.why,
        )


def _warnings_of_kept(kept: Sequence[BadNode], request: Request, usable: int) -> Iterator[str]:
    if kept:
        yield _(
            "the job may get nodes that are known as bad ({names}): {partition} has {usable} nodes for it, and without "
            "all bad ones too few are left. truba nodes shows the list.",
            names=", ".join(entry.node for entry in kept),
            partition=request.partition,
            usable=usable,
        )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
