"""Collect evidence for a reason: Slurm's records, lines of the log, and the queries named by `look` in the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from truba_runner.language import _, counted
from truba_runner.slurm import queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.hostlist import expand
from truba_runner.storage import quota
from truba_runner.why.case import Case, last_lines

_LISTED = 4
_LAST_LINES = 3


@dataclass(frozen=True)
class Evidence:
    """A line and its source: a command, a file with the line's number, or the run's id."""

    source: str
    says: str


def look(name: str, case: Case) -> list[Evidence]:
    """Run the query that the table calls `name`; empty if it fails."""
    found: list[Evidence] = []
    with suppress(SlurmError, OSError, ValueError, KeyError, IndexError):
        found += LOOKS[name](case)
    return found


def as_slurm_says(case: Case) -> str:
    """Format Slurm's record of the job: state, exit code, nodes, elapsed time and time limit."""
    job, last = case.state.job, case.last
    values = {
        "State": last.get("State") or (job.state if job else ""),
        "ExitCode": "" if case.state.live else case.exit_code,
        "NodeList": last.get("NodeList") or (job.nodes if job else ""),
        "Elapsed": last.get("Elapsed") or (job.elapsed if job else ""),
        "Timelimit": last.get("Timelimit") or (job.time_limit if job else ""),
    }
    return ", ".join(f"{name}={value}" for name, value in values.items() if value and value != "None assigned")


def of_the_end(case: Case) -> Evidence:
    """Return Slurm's record of an ended job, from accounting if the site has it, else from the queue."""
    return Evidence("sacct" if case.starts else "squeue", as_slurm_says(case))


def end_of_logs(case: Case) -> list[Evidence]:
    """Return the last lines of each log, for the user to judge."""
    lines = []
    for log in case.logs():
        for number, line in last_lines(log)[-_LAST_LINES:]:
            lines.append(Evidence(f"{log.name}:{number}" if number else log.name, line.strip()[:300]))
    return lines


def of_error(case: Case, on: Evidence) -> Iterator[Evidence]:
    """Yield the line of the user's code that the recorded exception passed through, if `on` is that exception."""
    error = case.error
    if error and error.file and on.source == case.run.id:
        yield Evidence(f"{error.file}:{error.line}", error.code)


def _limits(case: Case) -> Iterator[Evidence]:
    values = case.values
    for one in queries.limits(values["account"], "" if values["qos"] == "?" else values["qos"]):
        of = f"{one.resource}={one.limit}" if one.resource else one.limit
        used = ", " + _("{used} in use", used=one.used.removesuffix(".00")) if one.used else ""
        yield Evidence("scontrol show assoc_mgr", f"{one.holder}: {one.name} {of}{used}")
    asked = {name: case.queued[name] for name in ("cores", "nodes", "gres", "time_limit") if case.queued.get(name)}
    if asked:
        yield Evidence(
            "squeue", _("the job asks for") + " " + ", ".join(f"{name}={much}" for name, much in asked.items())
        )


def _own_jobs(case: Case) -> Iterator[Evidence]:
    running = queries.running_in(case.values["account"])
    if not running:
        return
    some = ", ".join(f"{job_id} ({user}, {cores})" for job_id, user, cores in running[:_LISTED])
    message = counted(
        "{count} job of the account is running, with {cores} cores: {some}",
        "{count} jobs of the account are running, with {cores} cores: {some}",
        len(running),
        cores=sum(row[2] for row in running),
        some=some + (", …" if len(running) > _LISTED else ""),
    )
    yield Evidence("squeue", message)


def _queue(case: Case) -> Iterator[Evidence]:
    partition = case.values["partition"]
    before = queries.jobs_before(case.job_id, partition)
    if before is not None:
        yield Evidence("squeue", counted("{count} job is ahead of it", "{count} jobs are ahead of it", before))
    busy, idle, out, total = queries.cores_in(partition)
    message = _("of {total} cores {busy} are in use, {idle} free, {out} on nodes that are out of use",
             total=total, busy=busy, idle=idle, out=out)  # fmt: skip
    yield Evidence(f"sinfo -p {partition}", message)


def _nodes(case: Case) -> Iterator[Evidence]:
    partition = case.values["partition"]
    out = queries.nodes_out_of_use(partition)
    for name, state, why in out[:_LISTED]:
        yield Evidence(f"sinfo -p {partition}", f"{name} {state}" + (f" ({why})" if why else ""))
    if len(out) > _LISTED:
        more = len(out) - _LISTED
        yield Evidence(f"sinfo -p {partition}", counted("and {count} more", "and {count} more", more))


def _node(case: Case) -> Iterator[Evidence]:
    names = case.last.get("NodeList") or (case.state.job.nodes if case.state.job else "")
    if not re.fullmatch(r"[\w\[\],.-]+", names):
        return
    for name, state, why in queries.nodes(names)[:_LISTED]:
        yield Evidence("sinfo", _("{node} is {state} now", node=name, state=state) + (f" ({why})" if why else ""))


def _reservations(case: Case) -> Iterator[Evidence]:
    mine = {node for one in queries.shown("partition", case.values["partition"]) for node in expand(one["Nodes"])}
    keys = ("ReservationName", "StartTime", "EndTime", "Nodes", "Flags")
    for one in queries.shown("reservation"):
        if mine.isdisjoint(expand(one.get("Nodes", ""))):
            continue
        yield Evidence("scontrol show reservation", ", ".join(f"{key}={one[key]}" for key in keys if key in one))


def _partition(case: Case) -> Iterator[Evidence]:
    keys = ("State", "MaxTime", "MaxNodes", "AllowAccounts", "AllowQos", "QoS", "MaxMemPerNode", "MaxMemPerCPU")
    for one in queries.shown("partition", case.values["partition"]):
        said = ", ".join(f"{key}={one[key]}" for key in keys if one.get(key, "ALL") not in {"ALL", "UNLIMITED"})
        yield Evidence(f"scontrol show partition {case.values['partition']}", said)


def _dependency(case: Case) -> Iterator[Evidence]:
    asked = case.queued.get("dependency") or queries.shown("job", case.job_id)[0].get("Dependency", "")
    if asked:
        yield Evidence("squeue", asked)
    wanted = re.findall(r":(\d+(?:_\d+)?)", asked)
    for job_id, starts in queries.starts(wanted).items() if wanted else ():
        last = starts[-1].fields
        yield Evidence("sacct", f"{job_id}: State={last['State']}, ExitCode={last['ExitCode']}")


def _memory(case: Case) -> Iterator[Evidence]:
    start = case.starts[-1]
    used = [step["MaxRSS"] for step in start.steps if step.get("MaxRSS")]
    if asked := start.fields.get("ReqMem"):
        yield Evidence("sacct", f"ReqMem={asked}" + (f", MaxRSS={', '.join(used)}" if used else ""))
    for step in start.steps:
        if step["State"] == "OUT_OF_MEMORY":
            yield Evidence("sacct", f"{step['JobID']}: {step['State']}")


def _earlier(case: Case) -> Iterator[Evidence]:
    ended = [start.fields for start in case.starts if start.fields.get("End") not in {"Unknown", "", None}]
    for one in ended[-_LISTED:]:
        said = _("the start of {start} ended at {end}: {state}", start=one["Start"], state=one["State"], end=one["End"])
        yield Evidence("sacct", f"{said} ({one['NodeList']}, ExitCode={one['ExitCode']})")


def _accounts(case: Case) -> Iterator[Evidence]:
    yield Evidence("sacctmgr", _("your accounts: {accounts}", accounts=", ".join(queries.accounts()) or "–"))


def _comments(case: Case) -> Iterator[Evidence]:
    for one in queries.shown("job", case.job_id):
        for key in ("Reason", "AdminComment", "SystemComment", "Comment", "Restarts"):
            if one.get(key, "None") not in {"None", "0"}:
                yield Evidence("scontrol show job", f"{key}={one[key]}")


def _requested(case: Case) -> Iterator[Evidence]:
    keys = ("NumNodes", "ReqNodeList", "ExcNodeList", "Features", "TresPerNode")
    for one in queries.shown("job", case.job_id):
        yield Evidence("scontrol show job", ", ".join(f"{key}={one[key]}" for key in keys if key in one))


def _licenses(case: Case) -> Iterator[Evidence]:
    yield Evidence("squeue", _("the job asks for") + f" {case.queued.get('licenses', '')}")
    for one in queries.shown("license"):
        yield Evidence("scontrol show license", ", ".join(f"{key}={value}" for key, value in one.items()))


def _disk(case: Case) -> Iterator[Evidence]:
    for room in quota.rooms(case.run.path):
        yield Evidence(room.source, room.said())


def _gpu(case: Case) -> Iterator[Evidence]:
    config: Mapping[str, Any] = case.run.read_config()
    facts = config["cluster"]["partitions"][case.values["partition"]]
    if facts["gpu"]:
        size = f", {facts['gpu_memory_gb']:g} GB" if facts["gpu_memory_gb"] else ""
        yield Evidence("conf/cluster", f"{case.values['partition']}: {facts['gpu']}{size}")


LOOKS: Mapping[str, Callable[[Case], Iterator[Evidence]]] = {
    "accounts": _accounts,
    "comments": _comments,
    "dependency": _dependency,
    "disk": _disk,
    "earlier": _earlier,
    "gpu": _gpu,
    "licenses": _licenses,
    "limits": _limits,
    "memory": _memory,
    "node": _node,
    "nodes": _nodes,
    "own_jobs": _own_jobs,
    "partition": _partition,
    "queue": _queue,
    "requested": _requested,
    "reservations": _reservations,
}
