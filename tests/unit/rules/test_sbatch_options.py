"""What a run asks of sbatch beyond cores, GPUs and time, and what it is not asked, whatever the shell says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment, Sweep, experiment_from
from truba_runner.environment import probe_job
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.rules.sbatch import refused, variables
from truba_runner.rules.site.here import Here
from truba_runner.rules.sweep import allocation
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm import batch_script
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission
from truba_runner.sweeps import sweeper_job
from truba_runner.sweeps.array import ArraySubmission

Compose = Callable[..., Experiment]
ASKED = [
    "resources.exclude=[akya3,'akya[7-9]']",
    "resources.nodelist=akya2",
    "resources.qos=long",
    "resources.reservation=course",
    "resources.memory_per_cpu_gb=4.5",
    "resources.exclusive=true",
    "+resources.sbatch={licenses: matlab, gpu_freq: high, nice: 0, no-kill: true, comment: 'a b', hold: null}",
    "+resources.sbatch.gres='tmp:1G'",
]
LINES = [
    "exclude='akya3,akya[7-9]'", "nodelist=akya2", "qos=long", "reservation=course", "mem-per-cpu=4608M", "exclusive",
    "licenses=matlab", "gpu-freq=high", "nice=0", "no-kill", "comment='a b'", "gres=gpu:1,tmp:1G", "requeue",
]  # fmt: skip


def prepared(experiment: Experiment, folder: Path) -> Prepared:
    return Prepared(experiment, RunDir(folder / run_id(experiment)), plan(experiment).request, Path("/jobs/mnist.py"))


def asked_in(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_keys_are_in_the_script_and_on_record_of_a_run_and_of_a_sweep(experiment: Compose, tmp_path: Path) -> None:
    one = prepared(experiment(*ASKED), tmp_path)
    submission = Submission(one)
    array = ArraySubmission(
        one, sweep=SweepDir.of(tmp_path, "s-x1"), tasks=[[one]], allocation=one.request, places=1, max_parallel=1
    )
    for script in (submission.script(), array.script()):
        assert set(LINES) <= set(asked_in(script)) and len(asked_in(script)) == len(set(asked_in(script)))
        assert not [line for line in asked_in(script) if line.startswith(("mem=", "hold"))]
    request, further = submission.parameters(), submission.parameters()["additional_parameters"]
    assert request["qos"] == "long" and further["reservation"] == "course" and further["licenses"] == "matlab"
    assert asdict(one.request)["sbatch"]["nice"] == 0
    # They make no other network, and what a job reads from run.yaml is the same.
    assert run_id(one.experiment) == run_id(experiment())
    read = experiment_from(yaml.safe_load(yaml.safe_dump(asdict(one.experiment))))
    assert plan(read).request == one.request


def test_a_run_that_asks_for_nothing_more_gets_the_script_of_before(experiment: Compose, tmp_path: Path) -> None:
    names = {line.partition("=")[0] for line in asked_in(Submission(prepared(experiment(), tmp_path)).script())}
    assert names == {
        "account", "chdir", "cpus-per-task", "gres", "job-name", "nodes", "ntasks-per-node", "open-mode", "output",
        "partition", "requeue", "signal", "time",
    }  # fmt: skip


def test_a_dependency_of_the_users_is_waited_for_with_the_sweeps_own(experiment: Compose, tmp_path: Path) -> None:
    one = prepared(experiment("+resources.sbatch.dependency='afterok:7'"), tmp_path)
    assert "dependency=afterok:7" in asked_in(Submission(one).script())
    array = ArraySubmission(
        one, sweep=SweepDir.of(tmp_path, "s-x1"), tasks=[[one]], allocation=one.request, places=1, max_parallel=1,
        canary="first", canary_job="12",
    )  # fmt: skip
    assert "dependency=afterok:12,afterok:7" in asked_in(array.script())


REFUSED = [
    ("+resources.sbatch.partition=debug", "--partition", "Set resources.partition instead"),
    ("+resources.sbatch.mem_per_cpu=4G", "--mem-per-cpu", "resources.memory_per_cpu_gb"),
    ("+resources.sbatch.time=7", "--time", "resources.time"),
    ("+resources.sbatch.part=debug", "--partition", "resources.partition"),
    ("+resources.sbatch.gres='gpu:v100:2'", "--gpus", "resources.gpus"),
    ("+resources.sbatch.ntasks=4", "number of tasks follows", "Leave it out"),
    ("+resources.sbatch.output=/x", "in its run directory", "cluster.runs_folder"),
    ("+resources.sbatch.array='0-3'", "its own job arrays", "sweep.max_parallel"),
    ("+resources.sbatch.no_requeue=true", "fact of the site", "cluster.requeue=false"),
    ("+resources.sbatch.export=NONE", "environment of the command", "environment.setup"),
    ("+resources.sbatch.clusters=cuda", "Slurm cluster of this login node", "other cluster"),
    ("+resources.sbatch.p=debug", "not the long name", "after the two dashes"),
    ("+resources.sbatch.comment=[a,b]", "one value", "as sbatch takes it"),
    ('+resources.sbatch.comment="a\nrm x"', "on one line", "as sbatch takes it"),
    ("resources.exclude='akya[3-'", "not a list of nodes", "resources.exclude=akya3"),
    ("resources.exclude='akya3 akya4'", "not the name of a node", "akya[3-5],akya9"),
    ("resources.nodelist=[akya1,akya2]", "all of these 2 nodes, and resources.nodes=1", "resources.nodes=2"),
    ("resources.qos='a b'", "without blanks", "as Slurm lists it"),
    ("resources.memory_per_cpu_gb=0", "must be positive", "Leave it out"),
    ("cluster.default_memory_per_cpu_gb=inf", "must be positive and finite", "Leave it out"),
    ("resources.memory_per_cpu_gb=40", "that is 400 GB, and a node of akya-cuda has 384", "=38.4 or less"),
    ("cluster.memory=percpu", "no such choice", "per_cpu"),
]


@pytest.mark.parametrize(("override", "rule", "remedy"), REFUSED, ids=[row[0][:50] for row in REFUSED])
def test_what_contradicts_a_key_or_a_rule_is_refused_with_the_key_to_use(
    experiment: Compose, override: str, rule: str, remedy: str
) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment(override))
    (problem,) = refused.value.problems
    assert rule in problem.rule and remedy in problem.remedy


def test_two_keys_that_contradict_each_other_are_refused(experiment: Compose) -> None:
    for overrides, rule in (
        (["resources.memory_gb=8", "resources.memory_per_cpu_gb=2"], "resources.memory_gb is set too"),
        (["resources.nodelist=akya2", "resources.exclude='akya[1-3]'"], "keeps the job from akya2"),
    ):
        with pytest.raises(Refused, match=rule):
            plan(experiment(*overrides))


# What sbatch 22.05 prints (the last: words that no key is known for), the key that it is about, and what helps.
SLURM_SAID = [
    ("Batch job submission failed: Invalid node name specified", "resources.nodelist=akya2, resources.exclude=akya3,",
     "sinfo --Node --partition=akya-cuda"),
    ("Batch job submission failed: Requested nodes not in this partition", "resources.nodelist=akya2", "sinfo"),
    ("Batch job submission failed: Invalid qos specification", "resources.qos=long", "scontrol show partition=akya"),
    ("Batch job submission failed: Requested reservation is invalid", "resources.reservation=course", "scontrol show"),
    ("Batch job submission failed: Access denied to requested reservation", "resources.reservation=course", "scontrol"),
    ("Batch job submission failed: Invalid license specification", "resources.sbatch.licenses", "man sbatch"),
    ("unrecognized option '--gpu-freq=high' Try \"sbatch --help\"", "accept resources.sbatch.gpu_freq", "leave it out"),
    ("option '--no-kill' doesn't allow an argument", "resources.sbatch.no_kill", "Set it to true"),
    ("Batch job submission failed: Invalid account or account/partition combination specified", "resources.account=",
     "truba doctor"),
    ("Batch job submission failed: Invalid feature specification", "resources.constraint=akya-cuda", "lists the nodes"),
    ("Batch job submission failed: Job dependency problem", "resources.sbatch.dependency", "man sbatch"),
    ("Batch job submission failed: Unspecified error", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("words", "rule", "remedy"), SLURM_SAID, ids=[row[0][-40:] for row in SLURM_SAID])
def test_what_slurm_itself_refuses_names_the_key(experiment: Compose, words: str, rule: str, remedy: str) -> None:
    more = ["resources.account=me", "resources.constraint=akya-cuda", "+resources.sbatch.dependency=singleton"]
    told = refused.explained(words, plan(experiment(*ASKED, *more)).request)
    assert (rule in told[0] and remedy in told[1]) if told else not rule


def test_a_key_that_is_not_set_is_not_named(experiment: Compose) -> None:
    for words, *_about in SLURM_SAID[:8]:
        assert refused.explained(words, plan(experiment()).request) is None


# -- sites ------------------------------------------------------------------------------------------------------------


def memory_of(request: Request) -> tuple[Any, Any]:
    parameters = batch_script.parameters("x", request)
    return parameters["mem"], parameters["mem_per_cpu"]


def test_memory_is_asked_for_in_the_way_of_the_site(experiment: Compose) -> None:
    def memory(*overrides: str) -> tuple[Any, Any]:
        return memory_of(plan(experiment(*overrides)).request)

    assert memory() == (None, None) == memory("cluster.memory=per_cpu")
    assert memory("resources.memory_gb=20") == ("20480M", None)
    assert memory("resources.memory_gb=20", "cluster.memory=per_cpu") == (None, "2048M")
    # A whole node's memory, divided, is no more than the node has.
    assert memory("resources.memory_gb=384", "resources.gpus=4", "cluster.memory=per_cpu") == (None, "9830M")
    assert memory("cluster.default_memory_per_cpu_gb=3") == (None, "3072M")
    assert memory("cluster.default_memory_per_cpu_gb=3", "resources.memory_per_cpu_gb=4") == (None, "4096M")
    assert memory("cluster.default_memory_per_cpu_gb=3", "resources.memory_gb=4") == ("4096M", None)
    for key in ("memory_gb", "memory_per_cpu_gb"):
        with pytest.raises(Refused, match="takes no job that asks for memory.*more cores"):
            memory("cluster.memory=none", f"resources.{key}=2")
    with pytest.raises(Refused, match="no job may ask for memory there. Leave out one of them"):
        memory("cluster.memory=none", "cluster.default_memory_per_cpu_gb=2")


def test_packed_runs_ask_for_as_much_memory_per_core_each(experiment: Compose) -> None:
    one = experiment("resources.memory_per_cpu_gb=5")
    packed = replace(one, sweep=Sweep(pack=2))
    whole = allocation(plan(one).request, packed)
    assert memory_of(whole) == (None, "5120M") and whole.node_memory_gb == 100


def test_a_site_without_requeues_says_so_and_gets_no_job_that_may_come_back(
    experiment: Compose, tmp_path: Path
) -> None:
    asked = experiment("cluster.requeue=false")
    (warning,) = plan(asked).warnings
    assert "the same command resumes it" in warning
    lines = asked_in(Submission(prepared(asked, tmp_path)).script())
    assert "no-requeue" in lines and "requeue" not in lines
    with pytest.raises(Refused, match="a chain is one job that goes back to the queue.*same command"):
        plan(experiment("cluster.requeue=false", "resources.segment=30"))


def test_whole_nodes_are_charged_and_a_local_run_has_no_use_for_the_keys(experiment: Compose) -> None:
    assert "for all 40 cores of a node, not for 10" in "".join(plan(experiment("resources.exclusive=true")).warnings)
    (warning,) = plan(experiment("resources.qos=long", "resources.exclude=a", cluster="local")).warnings
    assert warning.startswith("resources.exclude, resources.qos: no effect")


def test_the_jobs_of_a_probe_and_of_a_sweeper_have_the_qos_too(experiment: Compose) -> None:
    asked = experiment("resources.qos=long", "resources.exclude=akya3", "+resources.sbatch.nice=5")
    probe = probe_job._request(asked)
    assert (probe.partition, probe.qos, probe.exclude, probe.sbatch) == ("debug", "long", "akya3", {})
    assert probe_job._request(replace(asked, cluster=replace(asked.cluster, probe_qos="short"))).qos == "short"
    assert experiment("cluster.default_qos=all").resources.qos == "all"
    assert experiment("resources.qos=long").sweep.sweeper_qos == "long"
    sweeper = sweeper_job.resources_of(replace(asked.sweep, sweeper_partition="smp"), asked.resources)
    request = plan(replace(asked, resources=sweeper)).request
    assert (request.gpus, request.qos, request.account) == (0, "long", asked.resources.account)


# -- the shell --------------------------------------------------------------------------------------------------------


def told(experiment: Experiment, **shell: str) -> list[str]:
    return list(variables.warnings({"PATH": "/bin", **shell}, plan(experiment).request))


BASHRC: Mapping[str, str] = {
    "SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "7", "SBATCH_NO_REQUEUE": "1", "SBATCH_MEM_PER_NODE": "4G",
    "SBATCH_GPU_FREQ": "high",
}  # fmt: skip


def test_variables_that_would_have_changed_the_job_are_told_with_the_keys_to_use(experiment: Compose) -> None:
    (warning,) = told(experiment(), **BASHRC)
    assert all(f"{name}={value}" in warning for name, value in BASHRC.items())
    keys = "resources.memory_gb, resources.partition=debug, resources.time=7"
    assert f"set +resources.sbatch.gpu_freq=high, {keys}." in warning and "requeue=" not in warning
    assert plan(experiment(), Here(shell=BASHRC)).warnings == (warning,)
    assert plan(experiment(cluster="local"), Here(shell=BASHRC)).warnings == ()


def test_variables_that_change_nothing_are_no_news(experiment: Compose) -> None:
    same = {"SBATCH_PARTITION": "akya-cuda", "SBATCH_TIMELIMIT": "1:00:00", "SBATCH_REQUEUE": "1", "SBATCH_DEBUG": "1"}
    assert not told(experiment(), **same, SQUEUE_FORMAT="%i", SLURM_CONF="/etc/slurm.conf", SLURM_TIME_FORMAT="x")
    assert not told(experiment("+resources.sbatch.gpu_freq=high"), SBATCH_GPU_FREQ="high")


def test_what_srun_would_read_is_told_unless_a_surrounding_job_has_set_it(experiment: Compose) -> None:
    (warning,) = told(experiment(), SLURM_CPU_BIND="none", SLURM_NTASKS="4")
    assert "SLURM_CPU_BIND=none." in warning and "environment.setup=['export SLURM_CPU_BIND=none']" in warning
    assert not told(experiment(), SLURM_CPU_BIND="mask", SLURM_JOB_ID="3", SBATCH_MEM_BIND="none")


def test_the_key_to_use_is_one_that_is_taken(experiment: Compose) -> None:
    (warning,) = told(experiment(), SBATCH_GRES="gpu:3", SBATCH_OVERCOMMIT="", SBATCH_HOLD="1", SBATCH_EXCLUSIVE="yes")
    keys = "resources.exclusive=true, resources.gpus, +resources.sbatch.hold=true, +resources.sbatch.overcommit=true"
    assert warning.endswith(f"set {keys}.")
    (warning,) = told(experiment(), SBATCH_COMMENT='two "words"')
    assert warning.endswith("""set '+resources.sbatch.comment="two \\"words\\""'.""")
    assert experiment('+resources.sbatch.comment="two \\"words\\""').resources.sbatch == {"comment": 'two "words"'}


def test_a_flag_that_is_off_or_planned_is_no_news(experiment: Compose) -> None:
    assert not told(experiment(), SBATCH_NO_REQUEUE="0", SBATCH_OVERCOMMIT="no")
    assert told(experiment(), SBATCH_NO_REQUEUE="") and told(experiment(), SBATCH_NO_REQUEUE="yes")
    assert not told(experiment("cluster.requeue=false"), SBATCH_NO_REQUEUE="1")
