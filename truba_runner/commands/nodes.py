"""`truba nodes [--forget NODE]`: list the nodes that jobs leave out because they were bad, and those out of use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from truba_runner import terminal
from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.nodes import ledger
from truba_runner.nodes.ledger import BadNode
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import OutOfUse
from truba_runner.status.printing import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the list of bad nodes, and the nodes that the site has taken out of use; or take a node off the list."""
    command = parser(
        "nodes",
        _("Lists the nodes that jobs leave out because they were bad, and those that the site has taken out of use."),
    )
    command.add_argument(
        "override", nargs="*", help=_("which lists, written as for a run: cluster=NAME, cluster.bad_nodes=FILE, …")
    )
    command.add_argument("--forget", metavar=_("NODE"), help=_("take this node off the list: jobs may get it again"))
    options = command.parse_args(arguments)

    from truba_runner.config.composing.compose import composed

    # The cluster is the same for every experiment.
    cluster = composed(["+experiment=mnist", *options.override]).cluster
    runs_folder = options.runs or Path(cluster.runs_folder)
    if options.forget:
        _forget(runs_folder, cluster.bad_nodes, options.forget)
    bad = ledger.bad_nodes(runs_folder, cluster.bad_nodes, cluster.bad_nodes_days)
    out_of_use = _out_of_use() if cluster.scheduler == "slurm" else []
    if options.json:
        print_json({
            "bad": [_as_json(entry, cluster.bad_nodes_days) for entry in bad],
            "out_of_use": [asdict(entry) for entry in out_of_use],
        })  # fmt: skip
    else:
        _print(bad, cluster.bad_nodes_days, out_of_use)
    return 0


def _forget(runs_folder: Path, shared: str, node: str) -> None:
    try:
        known = ledger.forget(runs_folder, shared, node)
    except OSError as error:
        raise Failed("{node} could not be taken off the list: {error}", node=node, error=error) from error
    if not known:
        raise Refused(Problem(f"--forget {node}", _("it is not on the list."), _("truba nodes shows the list.")))


def _out_of_use() -> list[OutOfUse]:
    try:
        return queries.out_of_use()
    except SlurmError as error:
        warn(_("Slurm does not answer which nodes are out of use ({message})", message=error.message))
        return []


def _as_json(entry: BadNode, days: float) -> dict[str, object]:
    last = {"check": entry.last.check, "message": entry.last.message, "last": entry.last.time}
    about = {"node": entry.node, **last, "first": entry.first, "times": len(entry.faults), "until": entry.until(days)}
    return {**about, "files": [str(file) for file in entry.files]}


def _print(bad: Sequence[BadNode], days: float, out_of_use: Sequence[OutOfUse]) -> None:
    if bad:
        terminal.print_table(
            (_("node"), _("what was wrong"), _("last"), _("times"), _("left out until"), _("list")),
            [
                (
                    entry.node,
                    entry.why,
                    _date(entry.last.time),
                    str(len(entry.faults)),
                    _date(entry.until(days)),
                    "\n".join(map(str, entry.files)),
                )
                for entry in bad
            ],
        )
    else:
        print(_("no node is known as bad"))
    if out_of_use:
        print("\n" + _("out of use by the site:"))
        terminal.print_table(
            (_("node"), _("state"), _("the site's reason"), _("since")),
            [(entry.nodes, entry.state, entry.reason, entry.time.replace("T", " ")) for entry in out_of_use],
        )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
