"""Check Slurm, the user's account, and whether conf/cluster still agrees with the partitions."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator, Mapping

from truba_runner.config.durations import parse_minutes
from truba_runner.config.schema import Cluster, Partition
from truba_runner.doctor import FAULT, NOTE, OK, WARNING, Finding, Patient
from truba_runner.language import _
from truba_runner.rules.site.here import Here
from truba_runner.rules.site.place import elsewhere
from truba_runner.slurm import client, queries, relay
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import Hardware, Limit

# Runs also work without sacct.
_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
# A node reports slightly less memory than is installed.
_MEMORY_TOLERANCE = 0.05
_NEARLY_USED = 0.9


def on_slurm(patient: Patient) -> bool:
    """Return whether the cluster uses Slurm."""
    return patient.experiment.cluster.scheduler == "slurm"


def controller(patient: Patient) -> Iterator[Finding]:
    """Check that Slurm's commands are installed and its controller answers."""
    if not on_slurm(patient):
        yield Finding(
            NOTE,
            "Slurm",
            _("cluster={name} has no Slurm: runs train on this machine", name=patient.experiment.cluster.name),
        )
        return
    # Inside a container, a relay runs the commands outside.
    missing = [name for name in _COMMANDS if shutil.which(name) is None and relay.folder() is None]
    if missing:
        says = _("not on the PATH: {names}", names=", ".join(missing))
        yield Finding(FAULT, "Slurm", says, _("Work on a login node; to train on this machine, use cluster=local."))
        return
    began = time.monotonic()
    try:
        answer = queries.ping()
    except SlurmError as error:
        yield Finding(
            FAULT, "Slurm", _short(error), _("Try again in a few minutes; if it lasts, tell the site's support.")
        )
        return
    took = f"{(time.monotonic() - began) * 1000:.0f} ms"
    up = " is UP" in answer
    yield Finding(
        OK if up else FAULT, "Slurm", f"{answer} ({took})", "" if up else _("Jobs wait until it is up again.")
    )


def accounting(patient: Patient) -> Iterator[Finding]:
    """Check that sacct, which reports ended jobs, answers."""
    if not _asks_slurm(patient):
        return
    try:
        queries.starts(["1"])
    except SlurmError as error:
        remedy = _("Runs work without it, but the reason why a job ended then comes from its log alone.")
        absent = shutil.which("sacct") is None and relay.folder() is None
        says = _("there is no command sacct here") if absent else _short(error)
        yield Finding(WARNING, _("accounting"), says, remedy)
    else:
        yield Finding(OK, _("accounting"), _("sacct answers"))


def account(patient: Patient) -> Iterator[Finding]:
    """Check that jobs are charged to an account of the user's that has budget left."""
    if not _asks_slurm(patient):
        return
    cluster, name = patient.experiment.cluster, patient.experiment.resources.account
    subject = _("account {name}", name=name) if name else _("account")
    try:
        mine = queries.accounts()
    except SlurmError as error:
        yield Finding(NOTE, subject, _short(error), _("Slurm does not report your accounts."))
    else:
        if name not in mine:
            names = ", ".join(mine) or "–"
            says = _("you do not belong to it; your accounts: {names}", names=names)
            remedy = _(
                "Set resources.account=NAME, or default_account in conf/cluster/{cluster}.yaml.", cluster=cluster.name
            )
            yield Finding(FAULT, subject, says if name else _("your accounts: {names}", names=names), remedy)
            return
        yield Finding(OK, subject, _("your accounts: {names}", names=", ".join(mine)))
    if name:
        yield from _limits(subject, name, cluster)


def _limits(subject: str, name: str, cluster: Cluster) -> Iterator[Finding]:
    try:
        limits = queries.limits(name)
    except SlurmError as error:
        yield Finding(NOTE, subject, _short(error), _("Slurm does not report its limits."))
        return
    for one in limits:
        yield _limit(subject, one)
    at_once = [float(one.limit) for one in limits if (one.name, one.resource) == ("GrpTRES", "cpu")]
    if at_once and cluster.account_cores and min(at_once) < cluster.account_cores:
        says = _("{file} says account_cores: {conf}, Slurm allows {live:g} cores at once", file=_file(cluster),
                 conf=cluster.account_cores, live=min(at_once))  # fmt: skip
        yield Finding(NOTE, subject, says, _("If Slurm reports a limit, that one is used; correct the file."))


def _limit(subject: str, one: Limit) -> Finding:
    of = f"{one.name} {one.resource}={one.limit}" if one.resource else f"{one.name} {one.limit}"
    says = f"{one.holder}: {of}" + (", " + _("{used} in use", used=one.used) if one.used else "")
    # Only limits on accumulated use can be exhausted; what running jobs use is returned.
    lasting = one.name.endswith(("TRESMins", "GrpWall"))
    if not lasting or one.left is None or float(one.used) < _NEARLY_USED * float(one.limit):
        return Finding(OK, subject, says)
    remedy = _("Ask the site's support for more, or use another account (resources.account).")
    return Finding(FAULT if one.left <= 0 else WARNING, subject, says, remedy)


def partitions(patient: Patient) -> Iterator[Finding]:
    """Compare the partitions of conf/cluster with Slurm's, and list those that the user may use."""
    if not _asks_slurm(patient):
        return
    cluster, resources = patient.experiment.cluster, patient.experiment.resources
    try:
        live = {one["PartitionName"]: one for one in queries.shown("partition")}
        hardware = queries.hardware()
    except SlurmError as error:
        yield Finding(WARNING, _("partitions"), _short(error), _("Try again in a few minutes."))
        return
    usable = []
    for name, facts in cluster.partitions.items():
        found = list(_partition(name, facts, live.get(name), hardware.get(name, []), resources.account, cluster))
        usable += [name] if name in live and not any(one.level in {FAULT, NOTE} for one in found) else []
        chosen = name == resources.partition
        yield from (
            Finding(FAULT, one.subject, one.says, one.remedy) if chosen and one.level == NOTE else one for one in found
        )
    yield Finding(OK if usable else FAULT, _("partitions"), _("you may use: {names}", names=", ".join(usable) or "–"))
    if unknown := sorted(set(live) - set(cluster.partitions)):
        says = _(
            "Slurm has partitions that are missing in {file}: {names}", file=_file(cluster), names=", ".join(unknown)
        )
        yield Finding(OK, _("partitions"), says)


def _partition(
    name: str,
    facts: Partition,
    live: Mapping[str, str] | None,
    hardware: list[Hardware],
    account: str,
    cluster: Cluster,
) -> Iterator[Finding]:
    """Yield the problems of one partition. A note: the user cannot use it, which is a fault only of the chosen one."""
    subject, file = _("partition {name}", name=name), _file(cluster)
    other = elsewhere(cluster, name, Here(socket.gethostname().partition(".")[0]))
    if other:
        remedy = _("Submit its jobs there: ssh {host}", host=facts.login_nodes[0])
        yield Finding(NOTE, subject, other.rule, remedy)
    if live is None and other:
        return
    if live is None:
        says = _("it is in {file}, but not in Slurm", file=file)
        yield Finding(NOTE, subject, says, _("Choose another partition (resources.partition), or correct the file."))
        return
    if live.get("State", "UP") != "UP":
        remedy = _("The site has closed it for now; choose another partition (resources.partition).")
        yield Finding(NOTE, subject, f"State={live['State']}", remedy)
    allowed, denied = live.get("AllowAccounts", "ALL"), live.get("DenyAccounts", "")
    if (allowed != "ALL" and account not in allowed.split(",")) or account in denied.split(","):
        says = _("the account {account} may not use it (AllowAccounts={allowed})", account=account, allowed=allowed)
        remedy = _("Choose another partition (resources.partition) or another account (resources.account).")
        yield Finding(NOTE, subject, says, remedy)
    if differences := _differences(facts, live, hardware):
        says = _("{file} disagrees with Slurm: {differences}", file=file, differences="; ".join(differences))
        yield Finding(WARNING, subject, says, _("Correct the file, or a copy of it in your own conf/cluster/."))


def _differences(facts: Partition, live: Mapping[str, str], hardware: list[Hardware]) -> list[str]:
    """Return the differences between conf/cluster and Slurm, each as `key: conf/cluster's value, Slurm: its value`."""
    pairs: dict[str, tuple[object, object]] = {}
    limit = live.get("MaxTime", "UNLIMITED")
    if limit != "UNLIMITED" and parse_minutes(limit) != parse_minutes(facts.max_time):
        pairs["max_time"] = facts.max_time, limit
    nodes = sum(one.nodes for one in hardware)
    if facts.nodes and facts.nodes != nodes:
        pairs["nodes"] = facts.nodes, nodes
    for key, ours, theirs in (
        ("cores_per_node", facts.cores_per_node, {one.cores for one in hardware}),
        ("gpus_per_node", facts.gpus_per_node, {one.gpus for one in hardware}),
    ):
        if ours and theirs and theirs != {ours}:
            pairs[key] = ours, ", ".join(map(str, sorted(theirs)))
    memory_gb = max((one.memory_mb / 1024 for one in hardware), default=0.0)
    if facts.memory_gb and abs(memory_gb - facts.memory_gb) > _MEMORY_TOLERANCE * facts.memory_gb:
        pairs["memory_gb"] = f"{facts.memory_gb:g}", f"{memory_gb:g}"
    return [
        _("{key}: {ours}, Slurm: {theirs}", key=key, ours=ours, theirs=theirs) for key, (ours, theirs) in pairs.items()
    ]


def _asks_slurm(patient: Patient) -> bool:
    return on_slurm(patient) and client.available()


def _file(cluster: Cluster) -> str:
    return f"conf/cluster/{cluster.name}.yaml"


def _short(error: SlurmError) -> str:
    return str(error).splitlines()[0][:200]
