"""Query what the cluster has room for: free GPUs, array size, core limit, estimated start."""

from __future__ import annotations

import getpass
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from truba_runner.language import _
from truba_runner.slurm import client
from truba_runner.slurm.client import SlurmError

# Width of each column that sinfo prints: --Format supports no delimiter.
_WIDTH = 128
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class LivePartition:
    """A partition as Slurm reports it: its nodes, and how many of them have each feature."""

    nodes: int
    features: Mapping[str, int]


def estimated_start(script: str) -> float:
    """Return when Slurm expects a job of this script to start (`sbatch --test-only`), in seconds since 1970.

    Nothing is submitted.

    Raises:
        truba_runner.slurm.client.SlurmError: the job would be refused, or Slurm does not answer.
    """
    output = client.completed(["sbatch", "--test-only"], text=script).stderr
    found = re.search(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", output)
    if not found:
        words = _("no start time in Slurm's answer: {said}", said=output.strip())
        raise SlurmError("sbatch --test-only", words, transient=False)
    return datetime.fromisoformat(found[1]).timestamp()


def free_gpus() -> dict[tuple[str, str], int]:
    """Return the free GPUs on nodes that accept jobs, by partition and node feature; "" stands for all nodes."""
    columns = ("Partition", "Gres", "GresUsed", "StateCompact", "Features")
    widths = ",".join(f"{name}:{_WIDTH}" for name in columns)
    text = client.query(["sinfo", "--noheader", "--Node", f"--Format={widths}"])
    free: dict[tuple[str, str], int] = {}
    for line in text.splitlines():
        starts = range(0, _WIDTH * len(columns), _WIDTH)
        partition, gres, used, state, features = (line[start : start + _WIDTH].strip() for start in starts)
        # Suffixes: ~ is powered down until needed, - is planned for a pending job, * does not respond.
        takes_jobs = state.rstrip("~-") in {"idle", "mix", "alloc", "plnd"}
        # An asterisk marks the default partition.
        partition = partition.rstrip("*")
        for feature in ("", *features.split(",")):
            here = free.get((partition, feature), 0)
            free[partition, feature] = here + (gpus_in(gres) - gpus_in(used) if takes_jobs else 0)
    return free


def partitions() -> dict[str, LivePartition]:
    """Return this Slurm's partitions by name, counting nodes in any state.

    Raises:
        truba_runner.slurm.client.SlurmError: Slurm does not answer.
    """
    text = client.run(["sinfo", "--all", "--noheader", "--Node", "--format=%R|%f"], timeout_seconds=_ANSWER_SECONDS)
    nodes: Counter[str] = Counter()
    features: dict[str, Counter[str]] = {}
    for line in text.splitlines():
        name, _, listed = line.strip().partition("|")
        nodes[name] += 1
        features.setdefault(name, Counter()).update(set(listed.split(",")) - {"(null)"})
    return {name: LivePartition(count, features[name]) for name, count in nodes.items()}


def max_array_size() -> int:
    """Return Slurm's MaxArraySize; its default if Slurm does not report it."""
    try:
        output = client.query(["scontrol", "show", "config"])
    except SlurmError:
        output = ""
    found = re.search(r"^MaxArraySize\s*= (\d+)", output, re.MULTILINE)
    return int(found[1]) if found else 1001


def core_limit(account: str) -> int:
    """Return how many cores the caller may use at once on an account, by the controller; 0: no limit is reported."""
    # sacctmgr's output is easier to parse, but takes fifteen times as long.
    user = getpass.getuser()
    argv = ["scontrol", "--oneliner", "show", "assoc_mgr", "flags=assoc", f"accounts={account}", f"users={user}"]
    try:
        output = client.query(argv)
    except SlurmError:  # Some sites do not show this to users.
        return 0
    pattern = rf"Account={re.escape(account)} UserName=(?:{re.escape(user)}\(\d+\))? .* GrpTRES=cpu=(\d+)\("
    limits = (re.search(pattern, line) for line in output.splitlines())
    return min((int(found[1]) for found in limits if found), default=0)


def gpus_in(gres: str) -> int:
    """Return the number of GPUs in a GRES string such as `gpu:v100:4(S:0-1)`."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
