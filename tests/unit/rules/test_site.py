"""Rules of a site as data: cores, features, QOS, the Slurm that a partition belongs to, and how GPUs are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from truba_runner.config.partitions import features_in
from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Refused
from truba_runner.rules.experiment import plan
from truba_runner.rules.site.here import Here
from truba_runner.runs import state
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import batch_script, capacity, client, jobs
from truba_runner.slurm.capacity import LivePartition
from truba_runner.slurm.jobs import Job
from truba_runner.submission.already import already

Compose = Callable[..., Experiment]

LIVE = {
    "akya-cuda": LivePartition(16, {"akya-cuda": 16, "V100": 16}),
    "orfoz": LivePartition(192, {"orfoz": 192, "weka": 150}),
    "kolyoz-cuda": LivePartition(59, {"H100": 20, "H200": 39}),
}


def asking(experiment: Compose, partition: str, **resources: object) -> Experiment:
    """The experiment on a partition, with these resources; a CPU partition gets no GPU."""
    made = experiment(f"resources.partition={partition}")
    if not made.cluster.partitions[partition].gpus_per_node and partition != "debug":
        resources = {"gpus": 0, **resources}
    return replace(made, resources=replace(made.resources, **resources))  # type: ignore[arg-type]


def at(host: str, live: Mapping[str, LivePartition] | None = None) -> Here:
    """A machine whose Slurm reports these partitions."""
    return Here(host, "cd /arf/scratch/ayse/own && python3 truba.pyz +experiment=mnist", lambda: live)


def refusal(experiment: Experiment, here: Here) -> str:
    """Why the plan refuses the experiment; empty if it does not."""
    try:
        plan(experiment, here)
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize(
    ("partition", "gpus", "allowed", "refused"),
    [
        ("orfoz", 0, [56, 112], [8, 55, 57, 110]),
        ("hamsi", 0, [56], [28, 54]),
        ("barbun", 0, [20, 40], [10, 19, 30]),
        ("smp", 0, [1, 7, 224], [0, 225]),
        ("akya-cuda", 1, [10], [4, 20, 40]),
        ("akya-cuda", 4, [40], [10, 30]),
        ("barbun-cuda", 1, [20, 40], [8, 10, 30]),
        ("barbun-cuda", 2, [40], [20]),
        ("kolyoz-cuda", 1, [16, 32], [8, 17]),
    ],
)
def test_cores_are_a_set_a_multiple_or_exactly_those_of_the_gpus(
    experiment: Compose, partition: str, gpus: int, allowed: list[int], refused: list[int]
) -> None:
    for cores in allowed:
        assert plan(asking(experiment, partition, gpus=gpus, cores=cores)).request.cores == cores
    for cores in refused:
        with pytest.raises(Refused, match=f"resources.cores={cores}: .*conf/cluster/truba.yaml|node of {partition}"):
            plan(asking(experiment, partition, gpus=gpus, cores=cores))
    # What is asked for by default is allowed.
    assert plan(asking(experiment, partition, gpus=gpus)).request.cores in [*allowed, 1]


def test_a_rule_is_told_with_the_nearest_number_that_keeps_it(experiment: Compose) -> None:
    assert "Leave resources.cores out, or set resources.cores=112." in refusal(
        asking(experiment, "orfoz", cores=57), Here()
    )
    assert "resources.cores=40." in refusal(asking(experiment, "barbun", cores=30), Here())


def test_a_site_may_want_at_least_so_many_cores_or_have_no_rule(experiment: Compose) -> None:
    def cores(rule: str, number: int, each: int = 10) -> str:
        keys = f"cluster.partitions.akya-cuda.cores_rule={rule}", f"cluster.partitions.akya-cuda.cores_per_gpu={each}"
        return refusal(experiment(*keys, "resources.gpus=2", f"resources.cores={number}"), Here())

    assert not cores("at_least", 21) and "at least 10 cores per GPU" in cores("at_least", 19)
    assert not cores("multiple", 30) and "multiples of 10" in cores("multiple", 25)
    assert not cores("any", 3) and not cores("multiple", 3, each=0)
    assert "Did you mean at_least?" in cores("atleast", 20)


def test_debug_takes_any_number_of_cores_and_gives_those_of_the_family(experiment: Compose) -> None:
    assert plan(asking(experiment, "debug", constraint="akya-cuda", cores=3)).request.cores == 3
    assert plan(asking(experiment, "debug", constraint="orfoz", gpus=0)).request.cores == 56
    assert plan(asking(experiment, "debug", constraint="orfoz", gpus=0, cores=55)).request.cores == 55
    # Without a family, the number of cores is all that is missing.
    assert plan(asking(experiment, "debug", gpus=0, cores=110)).request.cores == 110
    assert "mixes node families" in refusal(asking(experiment, "debug", constraint="akya-cuda|orfoz"), Here())


def test_a_partition_of_another_slurm_is_refused_with_the_line_to_type(experiment: Compose) -> None:
    kolyoz = asking(experiment, "kolyoz-cuda", constraint="H100")
    told = refusal(kolyoz, at("arf-ui3"))
    assert "belongs to the Slurm cluster cuda" in told and "only from cuda-ui; this is arf-ui3" in told
    assert "Type: ssh -t cuda-ui 'cd /arf/scratch/ayse/own && python3 truba.pyz +experiment=mnist'" in told
    assert plan(kolyoz, at("cuda-ui"))
    assert "ssh -t arf-ui1 " in refusal(asking(experiment, "akya-cuda"), at("cuda-ui"))
    for host in ("arf-ui1", "arf-ui5"):
        assert plan(asking(experiment, "akya-cuda"), at(host))


def test_on_another_machine_slurm_says_which_partitions_it_has(experiment: Compose) -> None:
    palamut, akya = asking(experiment, "palamut-cuda"), asking(experiment, "akya-cuda")
    assert "the Slurm of this machine, ood1, has no such partition. Type: ssh -t cuda-ui " in refusal(
        palamut, at("ood1", LIVE)
    )
    assert plan(akya, at("ood1", LIVE)).warnings == ()
    # Where there is no Slurm, as on a laptop, a plan can be looked at.
    (warning,) = [one for one in plan(palamut, at("laptop")).warnings if "cuda-ui" in one]
    assert "this is laptop" in warning


def test_nodes_and_features_are_those_of_the_live_cluster(experiment: Compose) -> None:
    assert "akya-cuda has" not in refusal(asking(experiment, "akya-cuda", nodes=20), at("arf-ui1"))
    assert "akya-cuda has 16 nodes" in refusal(asking(experiment, "akya-cuda", nodes=20), at("arf-ui1", LIVE))
    twenty = asking(experiment, "kolyoz-cuda", nodes=25, constraint="H100")
    assert "kolyoz-cuda has 20 nodes" in refusal(twenty, at("cuda-ui", LIVE))
    assert plan(asking(experiment, "orfoz", constraint="weka"), at("arf-ui1", LIVE)).warnings == ()
    told = refusal(asking(experiment, "orfoz", constraint="wekka"), at("arf-ui1", LIVE))
    assert "no node of orfoz has the feature wekka" in told and "Did you mean weka?" in told


@pytest.mark.parametrize(("partition", "feature"), [("orfoz", "weka"), ("kolyoz-cuda", "h100"), ("barbun", "V100")])
def test_an_unknown_feature_is_a_warning_where_slurm_cannot_be_asked(
    experiment: Compose, partition: str, feature: str
) -> None:
    made = plan(asking(experiment, partition, constraint=feature))
    assert made.request.constraint == feature
    assert f"lists no feature {feature} for {partition}" in "".join(made.warnings)


def test_features_named_as_nodes_and_expressions_are_no_mistake(experiment: Compose) -> None:
    for partition, constraint in (("palamut-cuda", "palamut"), ("kolyoz-cuda", "H100|H200"), ("barbun", "barbun")):
        made = plan(asking(experiment, partition, constraint=constraint))
        assert not [one for one in made.warnings if "feature" in one]
    assert features_in("[H100*2|H200]&(a,b)") == ["H100", "H200", "a", "b"]
    assert plan(asking(experiment, "debug", gpus=2, constraint="akya-cuda&V100")).request.cores == 20


def test_without_a_constraint_either_gpu_may_come(experiment: Compose) -> None:
    def told(**resources: object) -> str:
        return "".join(plan(asking(experiment, "kolyoz-cuda", **resources)).warnings)

    assert "nodes with H100 and H200, and the job may get any of them" in told()
    assert "Set resources.constraint=H100 or resources.constraint=H200." in told()
    assert "any of them" not in told(constraint="H200")


def test_a_site_may_want_a_qos(experiment: Compose) -> None:
    own = "cluster.partitions.akya-cuda.qos=[normal,short]"
    assert plan(experiment(own)).request.qos == "normal"
    chosen = plan(experiment(own, "resources.qos=short")).request
    assert batch_script.parameters("job", chosen)["qos"] == "short"
    assert "akya-cuda takes no such QOS" in refusal(experiment(own, "resources.qos=shrt"), Here())
    # A partition that lists none takes what is asked for.
    assert plan(experiment("resources.qos=long")).request.qos == "long"
    assert plan(experiment()).request.qos == ""


def test_gpus_are_asked_for_as_the_site_wants_it(experiment: Compose) -> None:
    def lines(*overrides: str) -> list[str]:
        request = plan(experiment("resources.gpus=2", *overrides)).request
        text = batch_script.text("true", "/f", batch_script.parameters("job", request))  # type: ignore[arg-type]
        return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "gpu:" in line or "gpus" in line]

    assert lines() == ["--gres=gpu:2"]
    assert lines("cluster.gpu_option='--gpus-per-node={gpus}'") == ["--gpus-per-node=2"]
    assert lines("cluster.gpu_option='--gres=gpu:a100:{gpus}'") == ["--gres=gpu:a100:2"]
    assert "with one of: --gres" in refusal(experiment("cluster.gpu_option='--gpus={gpus}'"), Here())


def test_partitions_are_read_as_sinfo_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # slurm 22.05.8, `sinfo --all --noheader --Node --format=%R|%f`: a node has a line in each partition.
    printed = "akya-cuda|akya-cuda,V100\nakya-cuda|akya-cuda,V100\ndebug|akya-cuda,V100\nplain|(null)\n"
    monkeypatch.setattr(client, "run", lambda argv, **keys: printed)
    assert capacity.partitions() == {
        "akya-cuda": LivePartition(2, {"akya-cuda": 2, "V100": 2}),
        "debug": LivePartition(1, {"akya-cuda": 1, "V100": 1}),
        "plain": LivePartition(1, {}),
    }


def test_a_run_of_another_slurm_is_neither_lost_nor_submitted_twice(
    experiment: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asdict(plan(asking(experiment, "kolyoz-cuda", constraint="H100")).request)
    run = RunDir(tmp_path / "runs" / "mnist-0")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", job_name="mnist-0.t", request=request))
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    monkeypatch.setattr(state.socket, "gethostname", lambda: "arf-ui1")
    # A job 7 of this Slurm is another one.
    found = state.state_of(run.record(), {"7": Job("7", "RUNNING")})
    assert (found.state, found.live) == ("UNKNOWN", False) and "ask on cuda-ui" in found.why
    with pytest.raises(Failed, match="submitted to another Slurm cluster.* on cuda-ui"):
        already([run])
    for host in ("cuda-ui", "kolyoz3"):
        monkeypatch.setattr(state.socket, "gethostname", lambda host=host: host)
        assert state.state_of(run.record(), {"7": Job("7", "RUNNING")}).live
    monkeypatch.setattr(state.socket, "gethostname", lambda: "arf-ui1")
    # What Slurm is asked of its jobs, to be found or cancelled, is not about another's.
    assert state.slurm_jobs(run) == set()
    run.append_submission(Event(Kind.INTENT, token="u", request=asdict(plan(asking(experiment, "akya-cuda")).request)))
    run.append_submission(Event(Kind.SUBMITTED, token="u", job_id="8"))
    assert state.slurm_jobs(run) == {"8"} and state.state_of(run.record(), {"8": Job("8", "PENDING")}).live
    run.append_submission(Event(Kind.INTENT, token="v", request=request))
    assert state.elsewhere(run.record()) == "cuda-ui"
    # Slurm has refused it there, so that it may be submitted here.
    run.append_submission(Event(Kind.REFUSED, token="v", message="no"))
    monkeypatch.setattr(jobs, "queue", lambda: {})
    assert state.state_of(run.record(), {}).state == "REFUSED" and already([run]) == {}
    run.write_result({"metrics": {}})
    assert state.state_of(run.record(), {}).state == "COMPLETED"
