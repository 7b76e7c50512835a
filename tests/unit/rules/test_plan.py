from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import yaml

from truba_runner.config import backends
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment, experiment_from
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan

Compose = Callable[..., Experiment]


@pytest.mark.parametrize(
    ("overrides", "cores", "constraint"),
    [
        (["resources.partition=akya-cuda", "resources.gpus=2"], 20, ""),
        (["resources.partition=barbun-cuda", "resources.gpus=1"], 20, ""),
        (["resources.partition=palamut-cuda", "resources.gpus=8"], 128, ""),
        (["resources.partition=kolyoz-cuda", "resources.gpus=4", "resources.constraint=H200"], 64, "H200"),
        (["resources.partition=debug", "resources.gpus=2", "resources.constraint=akya-cuda"], 20, "akya-cuda"),
        (["resources.partition=debug", "resources.gpus=2", "resources.constraint=barbun-cuda"], 40, "barbun-cuda"),
        (["resources.partition=orfoz", "resources.gpus=0"], 56, ""),
        (["resources.partition=hamsi", "resources.gpus=0", "resources.cores=56"], 56, ""),
        (["resources.partition=barbun-cuda", "resources.gpus=1", "resources.cores=40"], 40, ""),
    ],
)
def test_cores_follow_from_gpus_and_partition(
    experiment: Compose, overrides: list[str], cores: int, constraint: str
) -> None:
    request = plan(experiment(*overrides)).request
    assert (request.tasks_per_node, request.cores, request.constraint) == (1, cores, constraint)


REFUSALS = [
    (["resources.gpus=0"], "takes no job without a GPU", "resources.gpus=1"),
    (["resources.gpus=5"], "has 4 GPUs", "resources.gpus=4"),
    (["resources.gpus=-1"], "must be 0 or more", "resources.gpus=1"),
    (["resources.gpus=1", "resources.cores=20"], "gives 10 cores with each GPU", "resources.cores=10"),
    (["resources.cores=50"], "has 40 cores", "Leave resources.cores out"),
    (["resources.time=4d"], "allows 3-00:00:00", "resources.time=3-00:00:00"),
    (["resources.partition=debug", "resources.constraint=akya-cuda", "resources.time=5h"], "04:00:00", "04:00:00"),
    (["resources.time=0"], "must be 1 or more", "resources.time=1"),
    (["resources.time=soon"], "not a valid duration", "2h"),
    (["resources.signal_seconds=9"], "10 s or more", "Leave it out"),
    (
        ["resources.time=2", "resources.signal_seconds=90"],
        "at most half of the time limit, here 60 s",
        "resources.time=3 (minutes)",
    ),
    (["resources.time=9", "resources.signal_seconds=300"], "here 270 s", "resources.signal_seconds=270 or less"),
    (["resources.time=3600"], "quotes", "1:30:00"),
    (["resources.partition=debug"], "mixes node families", "resources.constraint=akya-cuda"),
    (["cluster.runs_folder=/arf/home/me/runs"], "under", "choose a folder there"),
    (["cluster.runs_folder=${cluster.scratch}/../home"], "under", "choose a folder there"),
    (["cluster.runs_folder=${cluster.scratch}/a%j"], "pattern", "without one"),
    (["resources.partition=akya-kuda"], "no such partition", "Did you mean akya-cuda"),
    (["resources.memory_gb=500"], "has 384 GB", "resources.partition=palamut-cuda"),
    (["resources.memory_gb=2000"], "has 384 GB", "Ask for less."),
    (["resources.nodes=25"], "has 24 nodes", "resources.nodes=24"),
    (["resources.partition=orfoz"], "has no GPUs", "resources.gpus=0"),
    (
        ["resources.partition=orfoz", "resources.gpus=0", "resources.cores=8"],
        "takes 56 or 112 cores",
        "resources.cores=56",
    ),
    (["resources.account=''"], "charges every job to an account", "resources.account=ACCOUNT"),
    (["job.backend=keas"], "no such backend", "Did you mean keras"),
    (["data.name=minst"], "has no such data", "Did you mean mnist"),
    (["name='a b'"], "letters, digits", "another name"),
    (["train.epochs=0"], "must be 1 or more", "train.epochs=1"),
    (["train.batch_size=0"], "must be 1 or more", "train.batch_size=1"),
    (["resources.gpus=4", "train.batch_size=66"], "is not divisible by the 4 devices", "train.batch_size=64 or 68"),
    (["resources.gpus=4", "train.batch_size=2"], "is not divisible by the 4 devices", "train.batch_size=4,"),
    (["checkpoint.every_steps=0"], "must be 1 or more", "at the end of every epoch"),
    (["checkpoint.verify=true", "resources.nodes=2"], "2 processes would train this network", "resources.nodes=1"),
    (["checkpoint.every_minutes=0"], "must be positive", "set it to null"),
    (["checkpoint.every_minutes=-1"], "must be positive", "set it to null"),
    (["checkpoint.keep=0"], "cannot resume", "checkpoint.keep=1"),
    (["train.class_weight=balance"], "it must be balanced", "train.class_weight=balanced or"),
    (["train.class_weight=[1,50]"], "a mapping from classes", "{0: 1.0, 1: 50.0}"),
    (["resources.partition=foo"], "no such partition", "There are: akya-cuda"),
    (["train.batch_scaling=replica"], "no such choice", "Did you mean per_replica"),
    (["train.scale_learning_rate=true"], "train.batch_scaling=global it does not", "train.batch_scaling=per_replica"),
    (["train.mixed_precision=mixed_flaot16"], "no such choice", "Did you mean mixed_float16"),
    (["data.preprocessing=asynchronous"], "no such choice", "Did you mean async"),
    (["checkpoint.mode=maximum"], "no such choice", "max"),
    (["resources.mail_type='END,FIAL'", "resources.mail_user=me@example.org"], "no such choice", "FAIL"),
    (["notify.webhook=example.org/hook"], "not the address of a web server", "https://HOST/PATH"),
]


@pytest.mark.parametrize(("overrides", "rule", "remedy"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_each_rule_is_told_with_its_remedy(experiment: Compose, overrides: list[str], rule: str, remedy: str) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment(*overrides))
    assert any(rule in problem.rule and remedy in problem.remedy for problem in refused.value.problems), str(
        refused.value
    )


def test_several_nodes_have_a_task_each_and_the_gpus_of_each(experiment: Compose) -> None:
    request = plan(experiment("resources.nodes=2", "resources.gpus=2")).request
    assert (request.nodes, request.tasks_per_node, request.gpus) == (2, 1, 2)
    assert (request.cores, request.total_cores) == (20, 40)


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        (["resources.time=1h"], 90),
        (["resources.time=2"], 60),
        (["resources.time=2", "resources.signal_seconds=30"], 30),
    ],
)
def test_the_signal_comes_early_but_not_before_half_of_the_time(
    experiment: Compose, overrides: list[str], seconds: int
) -> None:
    assert plan(experiment(*overrides)).request.signal_seconds == seconds


def test_a_backend_that_trains_on_one_node_says_so(experiment: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.TRAITS, "keras", backends.Traits(task_per_gpu=False, multi_node=False))
    with pytest.raises(Refused, match="the keras backend trains on one node") as refused:
        plan(experiment("resources.nodes=2"))
    assert "resources.nodes=1" in refused.value.problems[0].remedy


def test_all_broken_rules_are_told_at_once(experiment: Compose) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment("resources.gpus=9", "resources.time=9d", "resources.memory_gb=999", "train.epochs=0"))
    received = {problem.received.split("=")[0] for problem in refused.value.problems}
    assert received == {"resources.gpus", "resources.time", "resources.memory_gb", "train.epochs"}


def test_a_second_site_is_a_second_file(experiment: Compose) -> None:
    four_nodes = experiment("resources.nodes=5", cluster="testcluster")
    with pytest.raises(Refused, match="akya-cuda has 4"):
        plan(four_nodes)


def test_a_time_limit_too_short_to_come_far_is_a_warning(experiment: Compose) -> None:
    (warning,) = plan(experiment("resources.time=4")).warnings
    assert "to save 90 s before" in warning and "resources.time=5" in warning
    assert plan(experiment("resources.time=5")).warnings == ()
    assert plan(experiment("resources.time=4", "cluster=local", cluster="local")).warnings == ()


def test_what_may_be_small_is_not_refused(experiment: Compose) -> None:
    ordinary = plan(experiment())
    assert (
        plan(experiment("checkpoint.every_minutes=1e-9", "checkpoint.every_steps=1", "checkpoint.keep=1")) == ordinary
    )
    assert plan(experiment("checkpoint.every_minutes=null", "train.class_weight={0: 1.0, 1: 50.0}")) == ordinary


def test_more_cores_than_the_account_has_is_a_warning(experiment: Compose) -> None:
    asked = experiment("resources.gpus=4", "cluster.account_cores=30")
    assert "AssocGrpCpuLimit" in "".join(plan(asked).warnings)
    assert plan(experiment("resources.gpus=4")).warnings == ()


def test_a_local_run_needs_no_partition_and_has_one_machine(experiment: Compose) -> None:
    assert plan(experiment("resources.gpus=2", cluster="local")).request.gpus == 2
    with pytest.raises(Refused, match="this machine only"):
        plan(experiment("resources.nodes=2", cluster="local"))


def test_a_batch_is_checked_against_the_gpus_of_one_node_and_local_devices_too(experiment: Compose) -> None:
    for given in (["train.batch_size=66"], ["train.batch_size=null"], ["train.batch_size=64"]):
        assert plan(experiment("resources.gpus=2", *given))
    # 33 for each of two GPUs.
    assert plan(experiment("resources.gpus=2", "train.batch_size=33", "train.batch_scaling=per_replica"))
    with pytest.raises(Refused, match="train.batch_size=33: it is not divisible by the 2 devices.*32 or 34"):
        plan(experiment("resources.gpus=2", "train.batch_size=33", cluster="local"))


def test_what_training_allows_passes(experiment: Compose) -> None:
    valid = [
        "train.batch_scaling=per_replica",
        "train.scale_learning_rate=true",
        "train.mixed_precision=mixed_bfloat16",
        "resources.partition=palamut-cuda",
    ]
    assert plan(experiment(*valid, "data.preprocessing=model", "notify.webhook=http://example.org/hook"))


def test_mail_is_sent_at_the_end_unless_told_otherwise(experiment: Compose) -> None:
    def mail(*overrides: str) -> tuple[str, str]:
        request = plan(experiment(*overrides)).request
        return request.mail_type, request.mail_user

    assert mail() == ("", "")
    assert mail("resources.mail_user=me@example.org") == ("END,FAIL", "me@example.org")
    assert mail("resources.mail_type=begin") == ("BEGIN", "")
    local = plan(experiment("resources.mail_user=me@example.org", cluster="local"))
    assert "Slurm sends the mails" in "".join(local.warnings)


def test_weights_and_callbacks_can_be_said_on_the_command_line(experiment: Compose) -> None:
    weights = "train.class_weight={0: 1.0, 1: 50.0}"
    callbacks = "train.callbacks=[EarlyStopping,{class_name: ReduceLROnPlateau, config: {patience: 2}}]"
    asked = experiment(weights, callbacks)
    assert asked.train.class_weight == {0: 1.0, 1: 50.0}
    assert asked.train.callbacks == ["EarlyStopping", {"class_name": "ReduceLROnPlateau", "config": {"patience": 2}}]
    # What the job reads from run.yaml is the same, and has the same name.
    read = experiment_from(yaml.safe_load(yaml.safe_dump(asdict(asked))))
    assert (read.train, run_id(read)) == (asked.train, run_id(asked))
    plain = run_id(experiment())
    assert len({plain, run_id(asked), run_id(experiment("data.preprocessing=model"))}) == 3
    # Who is told and what is kept makes no other network.
    assert run_id(experiment("notify.webhook=http://a.b/c", "checkpoint.best_model=true")) == plain
