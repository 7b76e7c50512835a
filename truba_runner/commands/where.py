"""`truba where EXPERIMENT`: show for each partition whether it fits, its expected start, and its cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from truba_runner import terminal
from truba_runner.code import job_module
from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.slurm.client import SlurmError
from truba_runner.status.printing import print_json
from truba_runner.submission.automatic import AUTO, Automatic
from truba_runner.submission.partition_choice import AT_ONCE_SECONDS, Offer, offers


def main(arguments: Sequence[str]) -> int:
    """Print a row for each partition, the earliest start first; nothing is submitted."""
    options = parser(
        "where", _("Shows for each partition whether the experiment fits, when it would start, and what it costs.")
    )
    options.add_argument(
        "override", nargs="+", help=_("the experiment, as for a run: mnist, or +experiment=mnist KEY=VALUE…")
    )
    given = options.parse_args(arguments)

    from truba_runner.config.composing.compose import composed

    experiment = composed([_override(one) for one in given.override])
    if experiment.cluster.scheduler != "slurm":
        rule = _("it has no partitions; runs start at once.")
        raise Refused(Problem(f"cluster={experiment.cluster.name}", rule, _("Choose a cluster with cluster=NAME.")))
    job_file = job_module.find(experiment.job.module, Path.cwd())
    # Ask about every partition, whichever the experiment names.
    anywhere = replace(experiment, resources=replace(experiment.resources, partition=""))
    experiment = Automatic().settled(anywhere, job_file)
    try:
        found = offers(experiment, job_file)
    except SlurmError as error:
        raise Failed("Slurm does not answer ({message})", message=error.message) from error
    if given.json:
        print_json([_as_json(offer) for offer in found])
    else:
        _print(found)
    return 0 if any(offer.request for offer in found) else 1


def _override(word: str) -> str:
    """Turn a bare experiment name into an override."""
    return word if "=" in word else f"+experiment={word}"


def _as_json(offer: Offer) -> dict[str, object]:
    request = offer.request
    cost = {"core_hours": offer.core_hours if request else None, "cores": request.total_cores if request else None}
    about = {
        "partition": offer.partition,
        "constraint": offer.constraint,
        "fits": request is not None,
        "start": offer.start,
    }
    return {**about, **cost, "free_gpus": offer.free_gpus, "left_out": offer.left_out, "why": offer.refusal}


def _print(found: Sequence[Offer]) -> None:
    columns = (_("partition"), _("constraint"), _("start"), _("free GPUs"), _("cores"), _("core-hours"), _("why not"))
    table: list[Sequence[str]] = []
    for offer in found:
        free = "" if offer.free_gpus is None else str(offer.free_gpus)
        cost = ("", "") if offer.request is None else (str(offer.request.total_cores), f"{offer.core_hours:,.0f}")
        table.append((offer.partition, offer.constraint, _start(offer.start), free, *cost, offer.refusal))
    terminal.print_table(columns, table)
    for partition, nodes in {offer.partition: offer.left_out for offer in found if offer.left_out}.items():
        print(_("{partition}: left out as bad: {nodes} (truba nodes)", partition=partition, nodes=", ".join(nodes)))
    if best := next((offer for offer in found if offer.automatic and offer.request), None):
        constraint = f" resources.constraint={best.constraint}" if best.constraint else ""
        print(
            _(
                "earliest start: resources.partition={partition}{constraint}, which resources.partition={auto} chooses",
                partition=best.partition,
                constraint=constraint,
                auto=AUTO,
            )
        )


def _start(start: float | None) -> str:
    if start is None or math.isinf(start):
        return ""
    if start - time.time() < AT_ONCE_SECONDS:
        return _("at once")
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(start))
