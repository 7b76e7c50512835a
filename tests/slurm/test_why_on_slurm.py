"""`truba why` on the real Slurm: as many reasons to wait and ways to end as can be provoked, all of them at once."""

from __future__ import annotations

import ctypes
import glob
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Cluster, ClusterUnavailable
from truba import Truba
from why_runs import WhyRuns

from truba_runner.why.table import meaning

ORFOZ = "orfoz -c 56"
HAMSI = "hamsi -c 28"
BARBUN = "barbun -c 20"
P100 = "barbun-cuda -c 20 --gres=gpu:1"
LONG = "sleep 600"
# What frameworks print before they die.
LOGS = {
    "gpu-memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 15.77 GiB in all",
    "nccl-timeout": "[rank1]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, Timeout(ms)=600000)",
    "nccl-network": "akya1:7:7 [0] NCCL WARN Bootstrap : no socket interface found",
    "gpu-broken": "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    "gpu-driver": "CUDA driver version is insufficient for CUDA runtime version",
    "gpu-other": "E CUDA_ERROR_NOT_PERMITTED: operation not permitted",
    "quota": "OSError: [Errno 122] Disk quota exceeded: '/arf/scratch/ayse/x'",
    "disk-full": "OSError: [Errno 28] No space left on device",
    "module-missing": "ModuleNotFoundError: No module named 'timm'",
    "shared-memory": "RuntimeError: unable to open shared memory object </torch_1_2> in read-write mode",
}
# Each reason with how a job comes to wait for it: the partition and what is asked, and options of sbatch.
WAITING: dict[str, tuple[str, tuple[str, ...]]] = {
    "priority": ("orfoz -c 112", ("--account=proj1",)),
    "resources": ("orfoz -c 112", ("--account=proj1", "--nice=0")),
    "account-cores": ("barbun-cuda -c 40 --gres=gpu:1", ()),
    "account-core-minutes": (HAMSI, ("--account=poor",)),
    "account-too-long": (HAMSI, ("--account=short", "--time=60")),
    "account-jobs": (HAMSI, ("--account=single",)),
    "account-at-once": (P100, ("--account=gpuless",)),
    "account-invalid": (HAMSI, ("--account=leaving",)),
    "account-not-allowed": ("kolyoz-cuda -C H100 -c 16 --gres=gpu:1", ("--account=proj1",)),
    "qos-per-user": (HAMSI, ("--account=proj1", "--qos=small")),
    "qos-jobs": (HAMSI, ("--account=proj1", "--qos=single")),
    "qos-at-once": (HAMSI, ("--account=proj1", "--qos=crowded")),
    "qos-too-long": (HAMSI, ("--account=proj1", "--qos=brief", "--time=60")),
    "qos-too-large": (HAMSI, ("--account=proj1", "--qos=narrow")),
    "held-by-user": (HAMSI, ("--account=proj1", "--hold")),
    "held-by-admin": (HAMSI, ("--account=proj1",)),
    "launch-failed-held": ("smp -c 1", ("--account=proj1",)),
    "begin-time": (HAMSI, ("--account=proj1", "--begin=now+1hour")),
    "dependency": (HAMSI, ("--account=proj1", "--dependency=afterok:{running}")),
    "dependency-never": (HAMSI, ("--account=proj1", "--dependency=afterok:{failed}")),
    "licenses": (HAMSI, ("--account=proj1", "--licenses=matlab:1")),
    "reservation": ("palamut-cuda -c 16 --gres=gpu:1", ("--account=proj1", "--reservation=later")),
    "nodes-unavailable": ("kolyoz-cuda -C H200 -c 16 --gres=gpu:1", ("--account=proj1",)),
    "maintenance": ("palamut-cuda -c 16 --gres=gpu:1", ("--account=proj1", "--time=300")),
    "bad-constraints": (BARBUN, ("--account=proj1", "--constraint=barbun")),
    "partition-down": ("debug -C akya-cuda -c 10 --gres=gpu:1", ("--account=proj1",)),
    "partition-time": ("akya-cuda -c 10 --gres=gpu:1", ("--account=proj1", "--time=600", "--hold")),
}
ENDED = {
    "exit-other": ("exit 3", ()),
    "exit-killed": ("kill -9 $$", ()),
    "exit-segfault": ("kill -11 $$", ()),
    "exit-not-found": ("no-such-command", ()),
    "ended-without-result": ("true", ()),
}


class States:
    """A cluster of its own, whose accounts, nodes and partitions are put out of order, and the runs that suffer."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.runs = WhyRuns(Truba(cluster, "why"))
        self.jobs: dict[str, str] = {}

    def root(self, *argv: str) -> str:
        return self.cluster.run(list(argv), user="root").stdout

    def submit(self, name: str, asked: str, *options: str, script: str = LONG) -> str:
        filled = [option.format(**self.jobs) for option in options]
        self.jobs[name] = self.runs.submit(name, *filled, script=script, asked=asked)
        return self.jobs[name]

    def wait_until_all(self, names: list[str], wanted: str, seconds: float) -> None:
        """Until squeue shows each job in a state whose name matches, or accounting does."""
        deadline = time.monotonic() + seconds
        left = {self.jobs[name]: name for name in names}
        while left:
            assert time.monotonic() < deadline, f"not {wanted} in time: {left} {self.root('squeue', '--states=all')}"
            shown = self.root("squeue", "--noheader", "--states=all", "--format=%i|%T|%r")
            for line in shown.splitlines():
                job_id, state, reason = line.split("|")
                if job_id in left and re.search(wanted, f"{state} {reason}"):
                    del left[job_id]
            time.sleep(0.2)


@pytest.fixture(scope="module")
def states() -> Iterator[States]:
    settings = {"TRUBA_TESTCLUSTER_GRACE_TIME": "1"}
    try:
        cluster = Cluster(settings)
    except ClusterUnavailable as error:
        pytest.skip(f"no Slurm test cluster: {error}")
    with cluster:
        made = States(cluster)
        configure(made)
        submit_all(made)
        yield made


def configure(states: States) -> None:
    """Accounts and QOS with limits, and what slurm.conf must know."""
    admin = ["sacctmgr", "--immediate"]
    for account, limit in {
        "poor": "GrpTRESMins=cpu=0", "short": "MaxWall=00:05:00", "single": "GrpJobs=1", "gpuless": "GrpTRES=gres/gpu=0",
        "leaving": "GrpJobs=0",
    }.items():  # fmt: skip
        states.root(*admin, "add", "account", account, limit)
        states.root(*admin, "add", "user", "ayse", f"account={account}")
    for qos, limit in {
        "small": "MaxTRESPerUser=cpu=10", "single": "MaxJobsPerUser=0", "crowded": "GrpTRES=cpu=10",
        "brief": "MaxWall=00:05:00", "narrow": "MaxTRESPerJob=cpu=10",
    }.items():  # fmt: skip
        states.root(*admin, "add", "qos", qos)
        states.root(*admin, "modify", "qos", qos, "set", limit)
        states.root(*admin, "modify", "user", "ayse", "where", "account=proj1", "set", f"qos+={qos}")
    prolog = states.cluster.folder / "etc" / "prolog"
    prolog.write_text('#!/bin/sh\n[ "$SLURM_JOB_PARTITION" != smp ]\n')
    prolog.chmod(0o755)
    with (states.cluster.folder / "etc" / "slurm.conf").open("a") as file:
        file.write(f"\nLicenses=matlab:1\nProlog={prolog}\nJobAcctGatherParams=OverMemoryKill\n")
    states.root("scontrol", "reconfigure")
    states.root("scontrol", "create", "reservation", "reservationname=later", "starttime=now+5hours", "duration=60",
                "nodes=palamut1", "accounts=proj1")  # fmt: skip
    states.root("scontrol", "create", "reservation", "reservationname=maintenance", "starttime=now+2hours", "duration=120",
                "nodes=palamut[1-2]", "flags=maint,ignore_jobs", "users=root")  # fmt: skip


def submit_all(states: States) -> None:
    """Every job, then the trouble that befalls those that wait; returns when the last has ended."""
    akya = "akya-cuda -c 40 --gres=gpu:4"
    states.submit("timeout", "hamsi -c 28", "--account=proj1", "--time=1", "--no-requeue")
    states.submit("preempted", "lowprio -c 40 --gres=gpu:4", "--nodelist=akya1", "--account=proj1", "--no-requeue")
    states.submit("node-failed", akya, "--nodelist=akya2", "--account=proj1", "--no-requeue")
    states.submit("running", akya, "--nodelist=akya3", "--account=ayse")
    states.submit("cancelled-by-you", P100, "--account=proj1")
    states.submit("cancelled-by-other", P100, "--account=proj1")
    states.wait_until_all(list(states.jobs), "RUNNING", 60)
    states.root("scancel", states.jobs["cancelled-by-other"])
    states.cluster.run(["scancel", states.jobs["cancelled-by-you"]])
    states.cluster.node_down("akya2")
    states.submit("better", akya, "--nodelist=akya1", "--account=proj1", script="sleep 5")
    for name, (script, options) in ENDED.items():
        states.submit(name, P100, "--account=proj1", *options, script=script)
    for name, line in LOGS.items():
        states.submit(name, P100, "--account=proj1", script=f"cat <<'END'\nhello\n{line}\nEND\nexit 1")
    eats = "python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"
    states.submit("memory", P100, "--account=proj1", "--mem=50M", script=f"srun {eats}")
    states.jobs["failed"] = states.jobs["exit-other"]


def test_x(states: States) -> None:
    time.sleep(20)
    print(states.root("squeue", "--states=all", "--format=%i %j %T %r %M %P"))
    print(states.root("sacct", "-nPD", "-S", "1970-01-01", "-o", "JobID,JobName,State,ExitCode,Reason,Start"))
    time.sleep(60)
    print(states.root("squeue", "--states=all", "--format=%i %j %T %r %M %P"))
    print(states.root("sacct", "-nPD", "-S", "1970-01-01", "-o", "JobID,JobName,State,ExitCode,Reason,Start"))
    print(states.cluster.log()[-3000:])
