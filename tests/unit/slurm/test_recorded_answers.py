"""Every parser of Slurm's answers on what Slurm 22.05, 24.11 and 26.05 really answered, to the same jobs on each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slurm_answers import FOLDER, REFUSED, VERSIONS, Recording, answered_by, ask, ask_in_vain

from truba_runner.rules.sbatch.refused import explained
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState
from truba_runner.slurm import batch_script, job_environment
from truba_runner.slurm.capacity import gpus_in
from truba_runner.slurm.jobs import Use
from truba_runner.slurm.queries import Hardware, Limit
from truba_runner.slurm.request import Request
from truba_runner.why import evidence
from truba_runner.why.case import Case
from truba_runner.why.table import meaning

WAITS = {
    "resources": "Resources", "priority": "Priority", "account_cores": "AssocGrpCpuLimit",
    "qos": "QOSMaxCpuPerUserLimit", "held": "JobHeldUser", "begin": "BeginTime", "licenses": "Licenses",
    "reserved": "Reservation", "excluded": "BadConstraints", "launch_failed": "launch failed requeued held",
    "dependency": "Dependency", "never": "DependencyNeverSatisfied",
    "requeued_held": "job requeued in held state", "requeued_then_held": "JobHeldUser",
}  # fmt: skip
# State and exit code of those that have ended.
ENDED = {
    "completed": ("COMPLETED", "0:0"), "failed": ("FAILED", "3:0"), "killed": ("FAILED", "0:9"),
    "environment": ("COMPLETED", "0:0"), "missing_program": ("FAILED", "2:0"), "bad_interpreter": ("FAILED", "2:0"),
    "cancelled": ("CANCELLED", "0:0"), "cancelled_by_root": ("CANCELLED", "0:0"), "time_limit": ("TIMEOUT", "0:0"),
    "preempted": ("PREEMPTED", "0:0"), "better": ("COMPLETED", "0:0"), "requeued": ("COMPLETED", "0:0"),
}  # fmt: skip
RUN = {"running": ("akya-cuda", "akya1"), "two_nodes": ("akya-cuda", "akya[3-4]"), "fills_orfoz": ("orfoz", "orfoz1")}
# The row of the table of reasons for what a job printed.
LOGS = {
    "missing_program": "program-missing", "bad_interpreter": "program-missing", "too_many_tasks": "step-not-created",
    "time_limit": "time-limit-in-log", "preempted": "preempted-in-log", "memory": "memory-in-log",
}  # fmt: skip
GPUS = {"akya-cuda": 4, "barbun-cuda": 2, "palamut-cuda": 8, "kolyoz-cuda": 4, "smp": 0}
NODES = {"akya-cuda": 4, "barbun-cuda": 2, "palamut-cuda": 2, "kolyoz-cuda": 2, "debug": 9, "smp": 1}


@dataclass
class Answers:
    """What one version of Slurm answered, as recorded and as the product reads it."""

    recording: Recording
    read: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.read[name]

    def job(self, name: str) -> str:
        return self.recording.jobs[name]


@pytest.fixture(scope="module", params=VERSIONS)
def answers(request: pytest.FixtureRequest) -> Answers:
    recording = Recording.read(request.param)
    with answered_by(recording.repeat):
        return Answers(recording, ask(recording.jobs))


def test_what_runs_waits_and_has_ended(answers: Answers) -> None:
    queue = answers["queue"]
    for name, reason in WAITS.items():
        job = queue[answers.job(name)]
        assert (job.state, job.reason, job.nodes, job.live) == (job.state, reason, "", True), name
        assert job.state == ("PENDING" if "requeued_held" != name else job.state)
    for name, (partition, nodes) in RUN.items():
        job = queue[answers.job(name)]
        assert (job.state, job.partition, job.nodes, job.reason) == ("RUNNING", partition, nodes, ""), name
        assert re.fullmatch(r"\d+:\d\d", job.elapsed) and job.time_limit == "20:00"
    for name, (state, _) in ENDED.items():
        assert (queue[answers.job(name)].state, answers["state"][name]) == (state, state)
    array, cancelled = answers.job("array"), answers.job("cancelled_array")
    tasks = {job_id: job.state for job_id, job in queue.items() if job_id.startswith((f"{array}_", f"{cancelled}_"))}
    assert tasks == {
        f"{array}_0": "RUNNING", **dict.fromkeys((f"{array}_1", f"{array}_2", f"{array}_3"), "PENDING"),
        **dict.fromkeys((f"{cancelled}_2", f"{cancelled}_5", f"{cancelled}_6", f"{cancelled}_7"), "CANCELLED"),
    }  # fmt: skip
    assert answers["unknown"] == "" and answers["named"] == [answers.job("completed")]
    would_end = {name for name, ends in answers["would_end"].items() if ends}
    assert would_end >= set(RUN) and not would_end & (set(WAITS) | set(ENDED) - {"time_limit"})


def test_what_accounting_has(answers: Answers) -> None:
    accounting, cancelled = answers["accounting"], answers.job("cancelled_array")
    for name, (state, exit_code) in ENDED.items():
        job = accounting[answers.job(name)]
        assert (job.state, job.exit_code) == (state, exit_code), name
    assert {accounting[f"{cancelled}_{task}"].state for task in (2, 5, 6, 7)} == {"CANCELLED"}
    assert accounting[answers.job("two_nodes")].nodes == "akya[3-4]"
    starts = answers["starts"]
    requeued = starts[answers.job("requeued")]
    assert [one.state for one in requeued] == ["REQUEUED", "COMPLETED"]
    assert {one.fields["NodeList"] for one in requeued} <= {"barbun121", "barbun122"}
    (by_root,), (own,) = (starts[answers.job(name)] for name in ("cancelled_by_root", "cancelled"))
    assert (by_root.fields["State"], own.fields["State"]) == ("CANCELLED by 0", "CANCELLED by 60001")
    (memory,) = starts[answers.job("memory")]
    assert memory.fields["ReqMem"] == "50M" and any(step.get("MaxRSS") for step in memory.steps)
    (limit,) = starts[answers.job("time_limit")]
    assert limit.fields["Timelimit"] == "00:01:00" and len(limit.steps) >= 1
    used = answers["used"]
    assert used[answers.job("running")].gpu_seconds * 10 == used[answers.job("running")].core_seconds > 0
    assert used[answers.job("held")] == Use(0, 0, 0)
    seconds = used[answers.job("two_nodes")].core_seconds // 80
    assert used[answers.job("two_nodes")] == Use(1, 80 * seconds, 8 * seconds)


def test_details_of_jobs_in_the_queue(answers: Answers) -> None:
    queued = answers["queued"]
    expected = {
        "running": {"account": "proj1", "qos": "normal", "time_limit": "20:00", "cores": "40", "nodes": "1"},
        "dependency": {"dependency": f"afterok:{answers.job('running')}(unfulfilled)", "gres": "", "features": ""},
        "never": {"dependency": f"afterok:{answers.job('failed')}(failed)"},
        "licenses": {"licenses": "matlab:1", "reason": "Licenses"},
        "reserved": {"reservation": "later"},
        "qos": {"qos": "small", "memory": "3500M"},
        "held": {"priority": "0", "start": "", "state": "PENDING"},
    }
    for name, fields in expected.items():
        one = queued[answers.job(name)]
        assert {key: one[key] for key in fields} == fields, name
    assert gpus_in(queued[answers.job("account_cores")]["gres"]) == 6
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", queued[answers.job("begin")]["start"])


def test_all_fields_of_a_job(answers: Answers) -> None:
    shown = answers["shown"]
    running, excluded = shown["running"], shown["excluded"]
    assert running["Comment"] == "lr=0.1 and=more words" and "and" not in running
    assert (running["JobState"], running["Requeue"], running["ReqNodeList"]) == ("RUNNING", "1", "akya1")
    assert running["JobName"] == "running" and running["StdOut"] == "/cluster/scratch/ayse/running.out"
    assert (excluded["ExcNodeList"], excluded["Reason"], excluded["NumNodes"]) == ("barbun1", "BadConstraints", "1")
    assert gpus_in(running["TresPerNode"]) == 4 and "Dependency" not in running
    assert shown["dependency"]["Dependency"] == f"afterok:{answers.job('running')}(unfulfilled)"
    assert shown["launch_failed"]["Reason"] == "launch_failed_requeued_held"
    assert shown["requeued"]["Restarts"] == "1"


def test_what_the_batch_script_greps_is_there_once(answers: Answers) -> None:
    (pattern,) = re.findall(
        r"scontrol show job \$job \| grep -q (?:'([^']+)'|(\S+))", "\n".join(batch_script.REQUEUE_OR_EXIT)
    )
    for name, requeue in {"running": True, "completed": True, "time_limit": False, "preempted": False}.items():
        argv = ["scontrol", "show", "job", answers.job(name)]
        forbidden = re.search(pattern[0] or pattern[1], answers.recording.repeat(argv, "").stdout, re.MULTILINE)
        assert (forbidden is None) == requeue, name


def test_limits_and_what_is_used_of_them(answers: Answers) -> None:
    limits = answers["limits"]
    assert Limit("proj1", "GrpTRESMins", "cpu", "100000", "0") in limits
    assert Limit("proj1", "GrpTRESMins", "gres/gpu", "5000", "0") in limits
    assert Limit("small", "GrpTRES", "gres/gpu", "8", "0") in limits
    assert Limit("small", "MaxTRESPU", "cpu", "10", "0") in limits
    assert len(limits) == 5
    assert answers["core_limit"] == 160 and answers["max_array_size"] == 2001
    assert answers["accounts"] == ["ayse", "proj1"]


def test_partitions_nodes_and_what_is_free(answers: Answers) -> None:
    assert answers["cores_in"] == (0, 56, 0, 56) and answers["jobs_before"] == 1
    array = answers.job("array")
    assert answers["running_in"] == [
        (answers.job("fills_orfoz"), "ayse", 112), (answers.job("running"), "ayse", 40), (f"{array}_0", "ayse", 20),
    ]  # fmt: skip
    drained = ("kolyoz2", "drained", "bad memory, ticket=7")
    assert answers["nodes_out_of_use"] == [drained]
    assert answers["nodes"] == [("akya1", "allocated", ""), ("akya2", "idle", ""), drained]
    # smp1 is drained too, as its prolog has failed.
    (gone,) = (entry for entry in answers["out_of_use"] if entry.nodes != "smp1")
    assert (gone.nodes, gone.state, gone.reason, gone.user) == (*drained, "root")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", gone.time)
    nodes = [(node.name, node.partition) for node in answers["every_node"]]
    assert (
        len(nodes) == len(set(nodes))
        and {partition: sum(one == partition for _, one in nodes) for partition in NODES} == NODES
    )
    assert {node.name: list(node.features) for node in answers["every_node"]}["akya1"] == ["akya-cuda", "V100"]
    (partition,) = answers["partition"]
    facts = {"State": "UP", "MaxTime": "3-00:00:00", "Nodes": "akya[1-4]", "AllowAccounts": "ALL"}
    assert {key: partition[key] for key in facts} == facts
    by_name = {one["PartitionName"]: one for one in answers["partitions"]}
    assert set(by_name) >= set(NODES) and by_name["kolyoz-cuda"]["AllowAccounts"] == "ayse,proj1,root"
    (reservation,) = answers["reservation"]
    assert (reservation["ReservationName"], reservation["Nodes"]) == ("later", "palamut1")
    (license,) = answers["license"]
    assert {key: license[key] for key in ("LicenseName", "Total", "Used")} == {
        "LicenseName": "matlab", "Total": "1", "Used": "1"
    }  # fmt: skip
    assert answers["ping"] == "Slurmctld(primary) at arf-ui1 is UP"
    hardware = answers["hardware"]
    assert hardware["akya-cuda"] == [Hardware(4, 40, 4, 393216)]
    assert {name: sum(one.nodes for one in hardware[name]) for name in NODES} == NODES
    assert {name: hardware[name][0].gpus for name in GPUS} == GPUS
    assert {name: answers["live_partitions"][name].nodes for name in NODES} == NODES
    assert answers["live_partitions"]["kolyoz-cuda"].features == {"kolyoz-cuda": 2, "H100": 1, "H200": 1}
    free = answers["free_gpus"]
    assert (free["akya-cuda", ""], free["barbun-cuda", ""], free["kolyoz-cuda", ""]) == (4, 3, 4)
    assert (free["kolyoz-cuda", "H100"], free["kolyoz-cuda", "H200"], free["debug", "V100"]) == (4, 0, 4)
    assert answers["start"] > 1_700_000_000


def test_the_key_for_which_a_job_was_refused(answers: Answers) -> None:
    refused = answers["refused"]
    assert refused["filter"] == "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz."
    asked = Request("nowhere", "nobody", 1, 1, 1, 0, None, 5, 90, "nothing", nodelist="nowhere1", reservation="nothing",
                    sbatch={"dependency": "x", "licenses": "x", "no-such-option": "x", "requeue": 1})  # fmt: skip
    keys = {"partition", "account", "nodelist", "constraint", "reservation", "dependency", "licenses"}
    for name in keys:
        told = explained(refused[name], asked)
        assert told and name in told[0], (name, refused[name])
    option, valueless = (explained(refused[name], asked) for name in ("option", "valueless"))
    assert option and "no_such_option" in option[0]
    # Slurm 26.05 no longer says that it is an option without a value.
    known = "doesn't allow an argument" in refused["valueless"]
    assert valueless and "sbatch.requeue" in valueless[0] and ("without a value" in valueless[1]) == known
    assert all(refused[name] for name in REFUSED)


@pytest.mark.parametrize("daemon", ["slurmdbd", "slurmctld"])
def test_a_daemon_that_is_down_is_asked_again(answers: Answers, daemon: str) -> None:
    with answered_by(answers.recording.repeat):
        failures = ask_in_vain(daemon)
    assert {name: error.transient for name, error in failures.items() if error} == dict.fromkeys(failures, True)


def test_the_variables_of_a_job(answers: Answers) -> None:
    lines = answers.recording.logs["environment"].splitlines()
    found = job_environment.current(dict(line.partition("=")[::2] for line in lines))
    assert (found.job_id, found.job_name, found.rank, found.on_slurm) == (
        answers.job("environment"),
        "environment",
        0,
        True,
    )
    variables = {line.partition("=")[0] for line in lines}
    assert not job_environment.without_slurms(dict.fromkeys(variables, "")).keys() - {"SLURM_CONF"}


def test_the_lines_of_slurm_in_a_log_find_their_rows(answers: Answers) -> None:
    for name, row in LOGS.items():
        found = [meaning("log", line) for line in answers.recording.logs[name].splitlines()]
        assert row in {one.row.id for one in found if one}, (name, answers.recording.logs[name])
        assert {one.row.id for one in found if one} == {row}
    programs = [meaning("log", line) for name in ("missing_program", "bad_interpreter")
                for line in answers.recording.logs[name].splitlines()]  # fmt: skip
    assert {one.groups["program"] for one in programs if one} == {"/nowhere/bin/python", "/nowhere/python"}


def test_why_shows_the_nodes_that_a_job_leaves_out(answers: Answers, tmp_path: Path) -> None:
    waiting = RunState("PENDING", live=True, job=None)
    with answered_by(answers.recording.repeat):
        (line,) = evidence.look("requested", Case(RunDir(tmp_path), waiting, answers.job("excluded")))
    assert line.says == "NumNodes=1, ExcNodeList=barbun1"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reason_to_wait_has_a_row(version: str) -> None:
    words = (FOLDER / f"{version}-reasons.txt").read_text().split()
    assert len(words) > 190
    rows = {word: meaning("waiting", word) for word in words}
    assert not {word for word, found in rows.items() if found is None or found.row.id == "unknown-reason"}
