"""`truba why` on the real Slurm: as many reasons to wait and ways to end as can be provoked, all of them at once."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, ClusterUnavailable, left_out
from record import REASONS
from truba import FAILING_JOB, Truba
from why_runs import WhyRuns

from truba_runner.why.table import meaning

ORFOZ = "orfoz -c 56"
HAMSI = "hamsi -c 56"
BARBUN = "barbun -c 20"
P100 = "barbun-cuda -c 20 --gres=gpu:1"
LONG = "sleep 600"
EATS = "python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
OVER_MEMORY_KILL = "JobAcctGatherParams=OverMemoryKill"
FENCED = "akya4"
# What frameworks print before they die. Lines that the test makes up, in the frameworks' words.
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
# Each reason with how a job comes to wait for it: the partition and what is asked of it, and options of sbatch.
WAITING: dict[str, tuple[str, tuple[str, ...]]] = {
    "resources": ("orfoz -c 112", ("--account=proj1",)),
    "priority": ("orfoz -c 112", ("--account=proj1",)),
    "account-cores": (P100, ("--account=ayse",)),
    "account-core-minutes": (HAMSI, ("--account=poor",)),
    "account-too-long": (HAMSI, ("--account=short", "--time=60")),
    "account-jobs": (HAMSI, ("--account=single",)),
    "account-at-once": (P100, ("--account=gpuless",)),
    "partition-config": ("kolyoz-cuda -C H100 -c 16 --gres=gpu:1", ("--account=proj1", "--begin=now+40")),
    "qos-per-user": (HAMSI, ("--account=proj1", "--qos=small")),
    "qos-jobs": (HAMSI, ("--account=proj1", "--qos=single")),
    "qos-at-once": (HAMSI, ("--account=proj1", "--qos=crowded")),
    "qos-too-long": (HAMSI, ("--account=proj1", "--qos=brief", "--time=60")),
    "qos-too-large": (HAMSI, ("--account=proj1", "--qos=narrow")),
    "held-by-user": (HAMSI, ("--account=proj1", "--hold")),
    "held-by-admin": (HAMSI, ("--account=proj1", "--begin=now+1hour")),
    "launch-failed-held": ("smp -c 1", ("--account=proj1",)),
    "begin-time": (HAMSI, ("--account=proj1", "--begin=now+1hour")),
    "dependency": (HAMSI, ("--account=proj1", "--dependency=afterok:{running}")),
    "dependency-never": (HAMSI, ("--account=proj1", "--dependency=afterok:{exit-other}")),
    "licenses": (P100, ("--account=proj1", "--licenses=matlab:1")),
    "reservation": ("palamut-cuda -c 16 --gres=gpu:1", ("--account=proj1", "--reservation=later")),
    "maintenance": ("palamut-cuda -c 16 --gres=gpu:1", ("--account=proj1", "--time=300")),
    "nodes-unavailable": ("kolyoz-cuda -C H200 -c 16 --gres=gpu:1", ("--account=free",)),
    "bad-constraints": (BARBUN, ("--account=proj1", "--constraint=barbun", "--begin=now+40")),
    "partition-down": ("debug -C akya-cuda -c 10 --gres=gpu:1", ("--account=proj1",)),
    "partition-time": (HAMSI, ("--account=proj1", "--time=600", "--begin=now+40")),
    "array-limit": (P100, ("--account=proj1", "--array=0-1%1")),
}
# What befalls a job once it has been accepted; until its earliest start it cannot have run.
TROUBLE = {
    "partition-config": ("partitionname=kolyoz-cuda", "allowaccounts=root,free"),
    "bad-constraints": ("nodename=barbun1", "availablefeatures=other", "activefeatures=other"),
    "partition-time": ("partitionname=hamsi", "maxtime=120"),
}
ENDED = {
    "exit-other": ("exit 3", ()),
    "exit-killed": ("exit 137", ()),
    "exit-signal": ("kill -10 $$", ()),
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

    def wait_until_running(self, *names: str) -> None:
        for name in names:
            self.cluster.wait_for_state(self.jobs[name], "RUNNING")

    def ask_until(self, names: list[str], seconds: float) -> dict[str, dict[str, Any]]:
        """`truba why` of these runs, once it gives each the reason that the run is named after, or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            told = self.runs.why(*names)
            if time.monotonic() > deadline or all(row["findings"][0]["reason"] == name for name, row in told.items()):
                return told


@pytest.fixture(scope="module")
def states() -> Iterator[States]:
    settings = {"TRUBA_TESTCLUSTER_GRACE_TIME": "1"}
    try:
        cluster = Cluster(settings)
    except ClusterUnavailable as error:
        left_out(f"no Slurm test cluster: {error}")
    with cluster:
        made = States(cluster)
        configure(made)
        submit_all(made)
        yield made


def configure(states: States) -> None:
    """Accounts and QOS with limits, and what slurm.conf must know."""
    admin = ["sacctmgr", "--immediate"]
    for account, limit in {
        "poor": "GrpTRESMins=cpu=0", "short": "MaxWall=00:05:00", "single": "GrpJobs=1",
        "gpuless": "GrpTRES=gres/gpu=0",
        "free": "GrpJobs=10",
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
        file.write(f"\nLicenses=matlab:1\nProlog={prolog}\n{OVER_MEMORY_KILL}\n")
    states.root("scontrol", "reconfigure")
    states.root(*admin, "modify", "account", "ayse", "set", "GrpTRES=cpu=40")
    states.root("scontrol", "update", "partitionname=debug", "state=down")
    states.root("scontrol", "update", "nodename=kolyoz2", "state=drain", "reason=bad memory")
    states.root("scontrol", "create", "reservation", "reservationname=later", "starttime=now+5hours", "duration=60",
                "nodes=palamut1", "accounts=proj1")  # fmt: skip
    states.root("scontrol", "create", "reservation", "reservationname=maintenance", "starttime=now+2hours",
                "duration=120", "nodes=palamut[1-2]", "flags=maint,ignore_jobs", "users=root")  # fmt: skip


def run_out_of_memory(states: States) -> None:
    """A job on a node that has control groups meanwhile: the kernel kills what takes more memory than it asked for."""
    etc = states.cluster.folder / "etc"
    whole = (etc / "slurm.conf").read_text()
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainRAMSpace=yes\n")
    # Slurm has no node whose memory two plugins watch over.
    fenced = whole.replace("TaskPlugin=task/none", "TaskPlugin=task/cgroup").replace(OVER_MEMORY_KILL, "")
    (etc / "slurm.conf").write_text(fenced)
    states.cluster.node_down(FENCED)
    states.cluster.node_up(FENCED)
    akya = "akya-cuda -c 10 --gres=gpu:1"
    job_id = states.submit("memory", akya, "--account=proj1", f"--nodelist={FENCED}", "--mem=50M", script=EATS)
    states.cluster.wait_for_state(job_id, "OUT_OF_MEMORY")
    (etc / "slurm.conf").write_text(whole)
    for node in (states.cluster.node_down, states.cluster.node_up):
        node(FENCED)
    top = MEMORY_CGROUPS / f"slurm_{FENCED}"
    for folder in sorted((path for path in (top, *top.rglob("*")) if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # Another cluster's.
            folder.rmdir()


def submit_all(states: States) -> None:
    """Every job, then the trouble that befalls those that wait; returns when the last has ended."""
    akya = "akya-cuda -c 40 --gres=gpu:4"
    states.submit("time-limit", HAMSI, "--account=proj1", "--time=1", "--no-requeue")
    states.submit("preempted", "lowprio -c 40 --gres=gpu:4", "--nodelist=akya1", "--account=proj1", "--no-requeue")
    states.submit("node-failed", akya, "--nodelist=akya2", "--account=proj1", "--no-requeue")
    states.submit("running", akya, "--nodelist=akya3", "--account=ayse")
    states.submit("cancelled-by-you", P100, "--account=proj1")
    states.submit("cancelled-by-other", P100, "--account=proj1")
    states.wait_until_running(*states.jobs)
    if MEMORY_CGROUPS.is_dir():
        run_out_of_memory(states)
    states.root("scancel", states.jobs["cancelled-by-other"])
    states.cluster.run(["scancel", states.jobs["cancelled-by-you"]])
    states.cluster.node_down("akya2")
    states.submit("better", akya, "--nodelist=akya1", "--account=proj1", script="sleep 5")
    for name, (script, options) in ENDED.items():
        states.submit(name, P100, "--account=proj1", *options, script=script)
    for name, line in LOGS.items():
        states.submit(name, P100, "--account=proj1", script=f"cat <<'END'\nhello\n{line}\nEND\nexit 1")
    states.submit("memory-in-log", P100, "--account=proj1", "--mem=50M", script=EATS)
    states.submit("past-deadline", HAMSI, "--account=poor", "--deadline=now+70", "--time=1")
    states.submit("has-the-one-place", BARBUN, "--account=single")
    states.submit("fills-orfoz", "orfoz -c 112", "--account=proj1", "--licenses=matlab:1")
    states.wait_until_running("has-the-one-place", "fills-orfoz")
    for name, (asked, options) in WAITING.items():
        states.submit(name, asked, *options)
        if name in TROUBLE:
            states.root("scontrol", "update", *TROUBLE[name])
    states.runs.on_record("array-limit", f"{states.jobs['array-limit']}_1", partition="barbun-cuda")
    states.root("scontrol", "hold", states.jobs["held-by-admin"])


def test_every_reason_that_this_slurm_can_give_is_in_the_table(states: States) -> None:
    named = states.root(sys.executable, "-c", REASONS).split()
    assert len(named) > 150
    rows = {word: meaning("waiting", word) for word in named}
    assert not {word for word, found in rows.items() if found is None or found.row.id == "unknown-reason"}


def test_jobs_that_wait(states: States) -> None:
    waiting = dict(WAITING)
    if not states.root("sbatch", "--version").startswith("slurm-wlm 22.05"):
        # Newer versions start the job, although its account may no longer use the partition.
        del waiting["partition-config"]
    told = states.ask_until(list(waiting), seconds=240)
    assert {name: told[name]["findings"][0]["reason"] for name in waiting} == {name: name for name in waiting}
    for name, words in {
        "account-cores": "GrpTRES cpu=40, 40 in use",
        "account-core-minutes": "poor: GrpTRESMins cpu=0",
        "qos-too-large": "narrow: MaxTRESPJ cpu=10",
        "dependency-never": "State=FAILED, ExitCode=3:0",
        "nodes-unavailable": "kolyoz2 drained (bad memory)",
        "maintenance": "ReservationName=maintenance",
        "partition-time": "MaxTime=02:00:00",
        "partition-config": "AllowAccounts=root,free",
        "licenses": "LicenseName=matlab, Total=1, Used=1",
        "bad-constraints": "Features=barbun",
        "launch-failed-held": "REQUEUED",
        "priority": "1 job is ahead of it",
        "resources": "of 112 cores 112 are in use",
        "array-limit": "JobArrayTaskLimit",
    }.items():
        assert name not in waiting or words in evidence(told[name]), told[name]
    assert told["dependency"]["findings"][0]["evidence"][1]["says"] == f"afterok:{states.jobs['running']}(unfulfilled)"


def test_the_estimated_start_is_slurms(states: States) -> None:
    told = states.ask_until(["resources"], seconds=240)["resources"]["estimated_start"]
    expected = states.root("squeue", "--start", "--noheader", "--format=%S", f"--jobs={states.jobs['resources']}")
    # Slurm works it out anew every few seconds.
    moments = [time.mktime(time.strptime(one.strip(), "%Y-%m-%dT%H:%M:%S")) for one in (told, expected)]
    assert abs(moments[0] - moments[1]) < 120
    assert told.replace("T", " ") in states.runs.said("resources")


def test_jobs_that_have_ended(states: States) -> None:
    at_once = [*ENDED, *LOGS, "cancelled-by-you", "cancelled-by-other", "memory-in-log"]
    told = states.ask_until([*at_once, "preempted", "node-failed"], seconds=240)
    assert {name: row["findings"][0]["reason"] for name, row in told.items()} == {name: name for name in told}
    for name, line in LOGS.items():
        (on, *_) = told[name]["findings"][0]["evidence"]
        assert on == {"source": f"{states.jobs[name]}_0_log.out:2", "says": line}
    assert "cancelled by root" in told["cancelled-by-other"]["findings"][0]["means"]
    assert "MaxRSS=" in evidence(told["memory-in-log"]) and "ReqMem=50M" in evidence(told["memory-in-log"])
    assert "akya2 is down" in evidence(told["node-failed"])
    assert "no-such-command: command not found" in evidence(told["exit-not-found"])


@pytest.mark.skipif(not MEMORY_CGROUPS.is_dir(), reason="Linux has no memory control groups of version 1 here")
def test_a_job_that_the_kernel_killed_for_its_memory(states: States) -> None:
    told = states.ask_until(["memory"], seconds=240)["memory"]
    assert told["findings"][0]["reason"] == "memory" and "OUT_OF_MEMORY" in evidence(told), told
    assert "ReqMem=50M" in evidence(told)


def test_runs_with_the_same_reason_are_told_of_together(states: States) -> None:
    states.cluster.wait_for_state(states.jobs["better"], "COMPLETED", in_accounting=True)
    said = states.runs.said("exit-segfault", "qos-jobs", "fills-orfoz", "running", "better", "ended-without-result")
    (together,) = [block for block in said.split("\n\n") if block.startswith("2 runs FAILED: ")]
    assert "better-1" in together and "ended-without-result-1" in together and "State=COMPLETED" in together
    assert "2 runs RUNNING: " in said and said.count("  why  ") == 4


def test_a_turkish_speaker_reads_turkish_and_programs_the_same(states: States) -> None:
    said = states.runs.said("account-cores", TRUBA_LANG="tr")
    assert "ayse hesabı" in said and "ne yapmalı" in said and "The account" not in said
    assert "AssocGrpCpuLimit" in said
    english, turkish = (states.runs.why("held-by-user", TRUBA_LANG=language) for language in ("en", "tr"))
    assert turkish["held-by-user"]["findings"][0]["reason"] == english["held-by-user"]["findings"][0]["reason"]


# A machine with other work answers late, and is no less well for it.
PATIENT_DOCTOR = """
import sys
from truba_runner import doctor
doctor.examine.__defaults__ = (240.0,)
from truba_runner.__main__ import main
sys.exit(main())
"""


def doctor(states: States, *arguments: str) -> subprocess.CompletedProcess[str]:
    return states.runs.truba("doctor", *arguments, program=["-c", PATIENT_DOCTOR])


def test_the_doctor_sees_what_is_out_of_order(states: States) -> None:
    chosen = ["resources.partition=debug", "resources.constraint=akya-cuda"]
    done = doctor(states, "--json", "cluster=testcluster", *chosen)
    found = json.loads(done.stdout)
    by_subject: dict[str, list[dict[str, str]]] = {}
    for one in found:
        by_subject.setdefault(one["subject"], []).append(one)
    assert done.returncode == 1
    faults = [one for one in found if one["level"] == "fault"]
    assert [(one["subject"], one["says"]) for one in faults] == [("partition debug", "State=DOWN")]
    (slurm,) = by_subject["Slurm"]
    assert slurm["level"] == "ok" and "UP" in slurm["says"]
    assert "ayse: GrpTRES cpu=40, 40 in use" in {one["says"] for one in by_subject["account ayse"]}
    assert any("account_cores: 160" in one["says"] for one in by_subject["account ayse"])
    kolyoz = {one["level"]: one["says"] for one in by_subject["partition kolyoz-cuda"]}
    assert "AllowAccounts=root,free" in kolyoz["note"]
    hamsi = [one for one in by_subject["partition hamsi"] if one["level"] == "warning"]
    assert "max_time: 3-00:00:00, Slurm: 02:00:00" in hamsi[0]["says"]
    (usable,) = [one for one in by_subject["partitions"] if one["says"].startswith("you may use")]
    assert "akya-cuda" in usable["says"] and "kolyoz" not in usable["says"] and "debug" not in usable["says"]


def test_the_doctor_has_nothing_against_a_partition_that_is_as_it_should_be(states: States) -> None:
    done = doctor(states, "cluster=testcluster")
    assert done.returncode == 0, done.stdout
    assert "found nothing that prevents runs" in done.stdout


def test_what_was_used_and_what_is_left(states: States) -> None:
    states.cluster.wait_for_state(states.jobs["better"], "COMPLETED", in_accounting=True)
    told = json.loads(states.runs.truba("usage", "--json", "--runs", str(states.runs.folder)).stdout)
    used = {row["name"]: row for row in told["usage"]}
    # It ran for five seconds or more, on 40 cores and four GPUs.
    better = used["better"]
    seconds = int(states.root("sacct", "-nXP", "-j", states.jobs["better"], "-o", "ElapsedRaw"))
    assert seconds and better["core_hours"] == pytest.approx(40 * seconds / 3600)
    assert better["core_hours"] == pytest.approx(10 * better["gpu_hours"])
    assert used["account-core-minutes"]["core_hours"] == 0
    own = ["job.module=failing", "data.name=digits", "resources.account=poor", states.runs.truba.runs_folder("more")]
    states.runs.truba.write("jobs/failing.py", FAILING_JOB)
    done = states.runs.truba("+experiment=mnist", *own)
    assert done.returncode == 0, done.stderr
    assert "WARNING: this submission may use up to 10 core-hours, but the account poor has only 0 left" in done.stderr


def test_time_limits_and_deadlines(states: States) -> None:
    told = states.ask_until(["time-limit", "past-deadline"], seconds=300)
    assert {name: row["findings"][0]["reason"] for name, row in told.items()} == {name: name for name in told}
    # As squeue writes it, or sacct.
    assert re.search(r"\((00:0)?1:00\)", told["time-limit"]["findings"][0]["means"])


def evidence(row: dict[str, Any]) -> str:
    return "\n".join(one["says"] for finding in row["findings"] for one in finding["evidence"])


def test_accounting_that_stands_still_holds_nobody_up(states: States) -> None:
    states.cluster.wait_for_state(states.jobs["exit-other"], "FAILED", in_accounting=True)
    (daemon,) = states.root("pgrep", "-x", "slurmdbd").split()
    states.root("kill", "-STOP", daemon)
    try:
        began = time.monotonic()
        done = states.runs.truba("status", "--json", "--runs", str(states.runs.folder), "exit-other-1")
        took = time.monotonic() - began
    finally:
        states.root("kill", "-CONT", daemon)
    assert done.stderr.count("Slurm's accounting does not answer (no answer within 5 s)") == 1
    # The controller has not forgotten the job yet.
    assert [row["state"] for row in json.loads(done.stdout)] == ["FAILED"]
    assert took < 20
