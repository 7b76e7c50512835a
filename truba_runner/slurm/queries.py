"""Query details for diagnosis from Slurm: jobs, limits, partitions, nodes, reservations.

The answers are evidence; no command depends on them. Each query runs once, and answers within seconds or raises
`SlurmError`.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from truba_runner.older_python import zip_equal
from truba_runner.slurm import client
from truba_runner.slurm.capacity import gpus_in
from truba_runner.slurm.jobs import SEPARATOR, own_rows

ANSWER_SECONDS = 5.0
# Our names for squeue's fields, with the letters of `squeue --format`.
_QUEUED = {
    "job_id": "%i", "state": "%T", "reason": "%r", "partition": "%P", "account": "%a", "qos": "%q", "time_limit": "%l",
    "start": "%S", "dependency": "%E", "priority": "%Q", "cores": "%C", "nodes": "%D", "gres": "%b", "memory": "%m",
    "features": "%f", "licenses": "%W", "reservation": "%v",
}  # fmt: skip
_ENDED = (
    "JobID", "State", "ExitCode", "Reason", "Partition", "Account", "QOS", "Timelimit", "Elapsed", "Start", "End",
    "NodeList", "ReqMem", "MaxRSS", "ReqCPUS",
)  # fmt: skip
# A field of `scontrol show`: one whose text may have blanks and "=" takes the rest of its line.
_FIELD = re.compile(
    r"\b(JobName|Command|WorkDir|SubmitLine|StdErr|StdIn|StdOut|\w*Comment|Extra)=(.*)"
    r"|([\w:/]+)=(.*?)(?=\s+[\w:/]+=|\s*$)"
)


def _ask(argv: Sequence[str]) -> str:
    return client.run(argv, timeout_seconds=ANSWER_SECONDS)


@dataclass(frozen=True)
class Start:
    """One start of a job as accounting reports it: sacct's fields by name, and those of its steps."""

    fields: Mapping[str, str]
    steps: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Slurm's state, without the user who cancelled the job."""
        return self.fields["State"].split()[0]


def queued() -> dict[str, dict[str, str]]:
    """Return the caller's jobs in the queue, by id: fields by our names for them, empty if squeue has no value.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    nothing = {"N/A", "(null)", "None"}
    rows = (["" if cell in nothing else cell for cell in row] for row in own_rows([*_QUEUED.values()], _ask))
    return {row[0]: dict(zip_equal(_QUEUED, row)) for row in rows}


def starts(job_ids: Iterable[str]) -> dict[str, list[Start]]:
    """Return every start of these jobs by job id, oldest first; a requeued job has several.

    Raises:
        truba_runner.slurm.client.SlurmError: the site has no accounting, or it does not answer.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    argv = ["sacct", "-nP", "--duplicates", f"--jobs={','.join(wanted)}", f"--format={','.join(_ENDED)}"]
    starts_by_job: dict[str, list[Start]] = {}
    latest: dict[str, Start] = {}
    for line in _ask([*argv, "--starttime=1970-01-01"]).splitlines():
        row = dict(zip(_ENDED, line.split("|")))
        job_id, _, step = row["JobID"].partition(".")
        if not step:
            latest[job_id] = Start(row)
            starts_by_job.setdefault(job_id, []).append(latest[job_id])
        elif job_id in latest:
            latest[job_id].steps.append(row)
    return starts_by_job


@dataclass(frozen=True)
class Limit:
    """A limit, in Slurm's own names: its holder, its name, the resource, the limit, and how much of it is used."""

    holder: str
    name: str
    resource: str
    limit: str
    # Empty if Slurm counts no use against it.
    used: str

    @property
    def left(self) -> float | None:
        """What is left of the limit; None if no use is counted against it."""
        return float(self.limit) - float(self.used) if self.used else None


def limits(account: str, qos: str = "") -> list[Limit]:
    """Return the limits of an account, of the caller in it, and of a QOS, as the controller counts them.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer, or does not show this to users.
    """
    user = getpass.getuser()
    argv = ["scontrol", "--oneliner", "show", "assoc_mgr"]
    all_limits = []
    for line in _ask([*argv, "flags=assoc", f"accounts={account}"]).splitlines():
        if (named := re.search(r"Account=(\S+) UserName=(\w*)", line)) and named[1] == account:
            if named[2] in {"", user}:
                all_limits += _limits_in(f"{account}/{user}" if named[2] else account, line)
    for line in _ask([*argv, "flags=qos", f"qos={qos}"]).splitlines() if qos else ():
        if re.match(rf"QOS={re.escape(qos)}\(", line):
            all_limits += _limits_of_qos(qos, line, account)
    return all_limits


def _limits_of_qos(qos: str, line: str, account: str) -> list[Limit]:
    """Return the limits of a QOS itself, and those that it sets for each account and user, for the caller's."""
    own, _, accounts = line.partition(" Account Limits=")
    accounts, _, users = accounts.partition(" User Limits=")
    users = re.sub(r"\S+\((\d+)\)=\{", r"\1={", users)  # ayse(60001)={…} in Slurm 24.11, 60001={…} in 22.05.
    found = _limits_in(qos, own)
    for holders, mine in ((accounts, account), (users, str(os.getuid()))):
        for holder, inside in re.findall(r"(\S+)=\{(.*?)\}", holders):
            if holder == mine:
                found += _limits_in(qos, inside)
    return found


def _limits_in(holder: str, text: str) -> list[Limit]:
    found = []
    for name, value in re.findall(r"\b((?:Grp|Max|MinTRES)\w+)=(\S+)", text):
        for part in value.split(","):
            resource, _, amount = part.rpartition("=")
            counted = re.fullmatch(r"([\d.]+)(?:\(([\d.]+)\))?", amount)
            if counted:
                found.append(Limit(holder, name, resource, counted[1], counted[2] or ""))
    return found


def jobs_before(job_id: str, partition: str) -> int | None:
    """Return how many pending jobs of a partition have a higher priority than this one; None if it is not pending.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    argv = ["squeue", "--noheader", "--array", f"--partition={partition}", "--states=PENDING", "--sort=-p,i"]
    waiting = _ask([*argv, "--format=%i"]).split()
    return waiting.index(job_id) if job_id in waiting else None


def cores_in(partition: str) -> tuple[int, int, int, int]:
    """Return the cores of a partition: in use, free, on nodes that are down or drained, and in total.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    quadruples = _ask(["sinfo", "--noheader", f"--partition={partition}", "--format=%C"]).split()
    counts = [[int(count) for count in line.split("/")] for line in quadruples]
    return tuple(map(sum, zip_equal(*counts))) if counts else (0, 0, 0, 0)  # type: ignore[return-value]


def running_in(account: str) -> list[tuple[str, str, int]]:
    """Return the running jobs of an account that Slurm shows to the caller: job id, user, cores; the largest first.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    argv = ["squeue", "--noheader", "--array", f"--account={account}", "--states=RUNNING", "--format=%i|%u|%C"]
    rows = (line.split("|") for line in _ask(argv).splitlines())
    return sorted(((job_id, user, int(cores)) for job_id, user, cores in rows), key=lambda row: -row[2])


def nodes_out_of_use(partition: str) -> list[tuple[str, str, str]]:
    """Return the nodes of a partition that now accept no jobs: name, Slurm's state, and the administrator's reason.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    states = "down,drain,draining,drained,fail,maint,resv,unknown,no_respond"
    return _node_rows(f"--partition={partition}", f"--states={states}")


@dataclass(frozen=True)
class Node:
    """A node of a partition, and its features."""

    name: str
    partition: str
    features: Sequence[str]


def every_node() -> list[Node]:
    """Return all nodes that Slurm knows, in any state, once for each of their partitions.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    form = SEPARATOR.join(("%N", "%R", "%f"))
    lines = _ask(["sinfo", "--all", "--noheader", "--Node", f"--format={form}"]).splitlines()
    rows = (line.strip().split(SEPARATOR) for line in lines)
    return [Node(row[0], row[1], row[2].split(",")) for row in rows if len(row) == 3]


@dataclass(frozen=True)
class OutOfUse:
    """Nodes, as Slurm's node list, that the site has taken out of use: state, reason, who gave it, and when."""

    nodes: str
    state: str
    reason: str
    user: str
    time: str


def out_of_use() -> list[OutOfUse]:
    """Return the nodes of all partitions that are down, drained or failing, with the reason.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    form = SEPARATOR.join(("%N", "%T", "%E", "%u", "%H"))
    lines = _ask(["sinfo", "--all", "--noheader", "--list-reasons", f"--format={form}"]).splitlines()
    rows = (line.strip().split(SEPARATOR) for line in lines)
    return list(dict.fromkeys(OutOfUse(*row) for row in rows if len(row) == 5))


def nodes(names: str) -> list[tuple[str, str, str]]:
    """Return nodes, given by name or as Slurm's node list: name, state, and the administrator's reason.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    return _node_rows(f"--nodes={names}")


def _node_rows(*which: str) -> list[tuple[str, str, str]]:
    argv = ["sinfo", "--noheader", "--Node", *which, f"--format={SEPARATOR.join(('%N', '%T', '%E'))}"]
    rows = (line.strip().split(SEPARATOR) for line in _ask(argv).splitlines())
    return list(dict.fromkeys((row[0], row[1], "" if row[2] == "none" else row[2]) for row in rows if len(row) == 3))


def shown(kind: str, name: str = "") -> list[dict[str, str]]:
    """Return, by name, the fields of each `job`, `partition`, `reservation` or `license` that `scontrol show` prints.

    Raises:
        truba_runner.slurm.client.SlurmError: there is none of this name, or Slurm does not answer.
    """
    records: list[dict[str, str]] = []
    for line in _ask(["scontrol", "show", kind, *([name] if name else [])]).splitlines():
        if line[:1].strip():  # Further lines of a record are indented.
            records.append({})
        for free, words, key, value in _FIELD.findall(line) if records else ():
            if (value or words).strip() not in {"(null)", "N/A"}:
                records[-1][key or free] = (value or words).strip()
    return [record for record in records if record]


def accounts() -> list[str]:
    """Return the accounts that the caller belongs to, the default one first.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm's accounting does not answer.
    """
    user = getpass.getuser()
    lines = _ask(["sacctmgr", "-nP", "show", "user", user, "withassoc", "format=Account,DefaultAccount"]).splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 1]
    return sorted({row[0] for row in rows}, key=lambda name: (name not in {row[1] for row in rows}, name))


def ping() -> str:
    """Return the output of `scontrol ping`.

    Raises:
        truba_runner.slurm.client.SlurmError: the controller does not answer.
    """
    return _ask(["scontrol", "ping"]).strip().replace("\n", "; ")


@dataclass(frozen=True)
class Hardware:
    """Group of identical nodes in a partition. Cores, GPUs and memory are per node."""

    nodes: int
    cores: int
    gpus: int
    memory_mb: int


def hardware() -> dict[str, list[Hardware]]:
    """Return the kinds of nodes of each partition.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    form = SEPARATOR.join(("%R", "%D", "%c", "%m", "%G"))
    found: dict[str, list[Hardware]] = {}
    for line in _ask(["sinfo", "--noheader", "--exact", f"--format={form}"]).splitlines():
        name, nodes_alike, cores, memory, gres = line.split(SEPARATOR)
        alike = Hardware(int(nodes_alike), int(cores.rstrip("+")), gpus_in(gres), int(memory.rstrip("+")))
        found.setdefault(name, []).append(alike)
    return found
