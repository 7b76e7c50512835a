"""Where a job would start soonest, how long it should ask for, and what a chain of short jobs asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Refused
from truba_runner.rules.experiment import plan
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import capacity
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.request import derive
from truba_runner.submission import here
from truba_runner.submission.automatic import Automatic
from truba_runner.submission.partition_choice import offers
from truba_runner.submission.time_limit import proposed

JOB = Path("/jobs/mnist.py")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | str]:
    """Seconds from now, or a refusal, that Slurm answers for each partition; it is asked itself in tests/slurm."""
    answers: dict[str, float | str] = {}

    def estimated(script: str) -> float:
        partition = next(line.split("=")[1] for line in script.splitlines() if line.startswith("#SBATCH --partition="))
        answer = answers.get(partition, 7200.0)
        if isinstance(answer, str):
            raise SlurmError("sbatch", answer, transient=answer == "Socket timed out", refused=True)
        return time.time() + answer

    monkeypatch.setattr(capacity, "estimated_start", estimated)
    monkeypatch.setattr(
        capacity, "free_gpus", lambda: {("akya-cuda", ""): 3, ("debug", ""): 5, ("debug", "akya-cuda"): 2}
    )
    monkeypatch.setattr(capacity, "core_limit", lambda account: 160)
    monkeypatch.setattr(here.socket, "gethostname", lambda: "arf-ui1")
    return answers


def auto(experiment: Experiment, **resources: object) -> Experiment:
    return replace(experiment, resources=replace(experiment.resources, **{"partition": "auto", **resources}))


def test_the_soonest_partition_is_taken_with_the_feature_that_it_wants(
    experiment: Callable[..., Experiment], starts: dict[str, float | str], capsys: pytest.CaptureFixture[str]
) -> None:
    starts["barbun-cuda"] = 600.0
    settled = Automatic().settled(auto(experiment()), JOB)
    assert (settled.resources.partition, settled.resources.constraint) == ("barbun-cuda", "")
    assert plan(settled).request.cores == 20 and "start it in 10 minutes" in capsys.readouterr().err
    here.socket.gethostname = lambda: "cuda-ui"  # type: ignore[assignment]
    starts["kolyoz-cuda"] = 60.0
    settled = Automatic().settled(auto(experiment()), JOB)
    assert (settled.resources.partition, settled.resources.constraint) == ("kolyoz-cuda", "H100")


def test_of_those_that_start_at_once_the_cheapest_and_debug_only_when_asked_for(
    experiment: Callable[..., Experiment], starts: dict[str, float | str]
) -> None:
    starts.update({"barbun-cuda": 0.0, "akya-cuda": 20.0, "debug": 0.0})
    found = offers(auto(experiment()), JOB)
    # 10 cores an hour against 20; debug's own choice of akya nodes costs the same, and it is for trying out.
    assert [(offer.partition, offer.constraint) for offer in found[:2]] == [("akya-cuda", ""), ("barbun-cuda", "")]
    assert (found[0].core_hours, found[0].free_gpus) == (10.0, 3)
    # Of a partition that mixes nodes, the GPUs of the kind that is asked for.
    assert {offer.free_gpus for offer in found if offer.constraint == "akya-cuda"} == {2}
    refused = {offer.partition: offer.refusal for offer in found if offer.request is None}
    assert "orfoz has no GPUs" in refused["orfoz"] and "accepts jobs only from cuda-ui" in refused["palamut-cuda"]
    starts.update(dict.fromkeys(experiment().cluster.partitions, "Requested node configuration is not available"))
    with pytest.raises(Refused, match="no partition accepts the job.*Requested node configuration"):
        Automatic().settled(auto(experiment()), JOB)


def test_what_is_wrong_wherever_it_runs_is_said_once_with_its_remedy(
    experiment: Callable[..., Experiment], starts: dict[str, float | str]
) -> None:
    with pytest.raises(Refused) as refused:
        Automatic().settled(auto(experiment("train.epochs=0"), time="soon"), JOB)
    assert [one.received for one in refused.value.problems] == ["train.epochs=0", "resources.time=soon"]
    assert "Write it as 90 (minutes)" in str(refused.value)
    # No node has nine GPUs, for reasons that differ.
    with pytest.raises(Refused, match="no partition accepts the job. .*barbun-cuda has 2 GPUs; .*akya-cuda has 4"):
        Automatic().settled(auto(experiment(), gpus=9), JOB)


def test_an_account_that_may_not_use_so_many_cores_at_once_would_wait_for_ever(
    experiment: Callable[..., Experiment], starts: dict[str, float | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "core_limit", lambda account: 10)
    starts.update({"barbun-cuda": 0.0, "akya-cuda": 600.0})
    found = offers(auto(experiment(), account="proj1"), JOB)
    assert found[0].partition == "akya-cuda"
    refused = {offer.partition: offer.refusal for offer in found if offer.request is None}
    assert refused["barbun-cuda"] == "the job requests 20 cores, and the account proj1 may use 10 at once"


def test_auto_takes_only_gpus_with_room_and_precision_and_runs_of_a_sweep_that_need_others_get_others(
    experiment: Callable[..., Experiment], starts: dict[str, float | str], tmp_path: Path
) -> None:
    """The sooner partition has 16 GB and no bfloat16."""
    job = tmp_path / "own.py"
    job.write_text(
        "import keras\n"
        "def build_model(units):\n"
        "    x = keras.Input((1000,))\n"
        "    return keras.Model(x, keras.layers.Dense(units)(x))\n"
    )
    here.socket.gethostname = lambda: "elsewhere"  # type: ignore[assignment]
    starts.update({"akya-cuda": 0.0, "palamut-cuda": 600.0})
    automatic, taken = Automatic(), []
    # A thousand weights a unit, each kept with two of Adam's numbers: 11 MB and 112 GB.
    for units, *more in ((1000,), (10_000_000,), (1000, "train.mixed_precision=mixed_bfloat16"), (2000,)):
        one = experiment(f"job.module={job}", f"+job.options.units={units}", "train.jit_compile=false", *more)
        taken.append(automatic.settled(auto(one), job).resources)
    assert [one.partition for one in taken] == ["akya-cuda", "kolyoz-cuda", "palamut-cuda", "akya-cuda"]
    assert taken[1].constraint == "H200", "141 GB"
    offered = offers(auto(experiment(f"job.module={job}", "+job.options.units=10_000_000")), job)
    assert "needs at least 112 GB" in next(one.refusal for one in offered if one.partition == "akya-cuda")


def test_where_slurm_is_silent_auto_fails_and_a_named_partition_stands(
    experiment: Callable[..., Experiment], starts: dict[str, float | str]
) -> None:
    starts["akya-cuda"] = "Socket timed out"
    with pytest.raises(Failed, match="not known which partition would start the job first"):
        Automatic().settled(auto(experiment()), JOB)
    assert Automatic().settled(experiment(), JOB).resources.partition == "akya-cuda"


def test_a_sweep_asks_once_for_runs_that_ask_for_the_same(
    experiment: Callable[..., Experiment], starts: dict[str, float | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(capacity, "free_gpus", lambda: asked.append(1) or {})
    automatic = Automatic()
    for gpus in (1, 1, 2):
        automatic.settled(auto(experiment(), gpus=gpus), JOB)
    assert len(asked) == 2


def earlier(experiment: Experiment, name: str, seconds: list[float], **resources: object) -> None:
    run = RunDir(Path(experiment.cluster.runs_folder) / name)
    run.create()
    run.write_config(asdict(replace(experiment, resources=replace(experiment.resources, **resources))))
    run.write_history([{"epoch": epoch, "seconds": one} for epoch, one in enumerate(seconds, 1)])


def test_the_proposed_time_is_that_of_the_runs_most_alike(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    made = experiment(f"cluster.runs_folder={tmp_path}/scratch/runs", "train.epochs=60", "resources.time=auto")
    with pytest.raises(Refused, match="none has finished an epoch yet"):
        proposed(made)
    earlier(made, "mnist-00000001", [600.0], gpus=4, partition="akya-cuda")
    # 10 minutes, and 60 epochs of 600 s with 30 % more.
    assert proposed(made).minutes == 795
    earlier(made, "mnist-00000002", [120.0] * 2, gpus=1, partition="barbun-cuda")
    assert proposed(made).minutes == 180
    # Nine fast epochs and a slow one: the slowest tenth is the measure, not the mean.
    earlier(made, "mnist-00000003", [60.0] * 9 + [100.0] * 2, gpus=1, partition="akya-cuda")
    assert proposed(made).minutes == 150
    (tmp_path / "scratch" / "runs" / "mnist-00000003" / "history.csv").write_text("epoch,seconds\nx,y\n")
    assert proposed(made).minutes == 180
    automatic = Automatic()
    settled = automatic.settled(made, JOB)
    assert settled.resources.time == "03:00:00" and plan(settled).request.time_minutes == 180
    with pytest.raises(Refused, match="none has finished an epoch yet"):  # Of other data the same command knows no run.
        automatic.settled(replace(made, data=replace(made.data, name="digits")), JOB)


def test_what_is_wrong_whatever_the_time_is_told_before_a_time_is_looked_for(
    experiment: Callable[..., Experiment], tmp_path: Path, starts: dict[str, float | str]
) -> None:
    made = experiment(f"cluster.runs_folder={tmp_path}/scratch/runs", "resources.time=auto", "train.recipe=[bad]")
    earlier(made, "mnist-00000001", [600.0], gpus=1, partition="akya-cuda")
    for asked in (made, auto(made)):
        with pytest.raises(Refused, match=r"train\.recipe: it is a setting of fastai"):
            Automatic().settled(asked, JOB)
    # What depends on the time is not judged by the time that stands in for it.
    fine = experiment(
        f"cluster.runs_folder={tmp_path}/scratch/runs", "resources.time=auto", "resources.segment=2h",
        "resources.max_requeues=0", "resources.signal_seconds=1800", "train.epochs=1",
    )  # fmt: skip
    assert Automatic().settled(fine, JOB).resources.time == "00:30:00"


def test_a_proposal_says_what_the_runs_ran_on_that_it_goes_by(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    made = experiment(f"cluster.runs_folder={tmp_path}/scratch/runs", "resources.partition=barbun-cuda")
    earlier(made, "mnist-00000001", [6.0], gpus=2, partition="akya-cuda")
    assert (
        proposed(made).because
        == "5 epochs of 6 s, the 90th percentile of 1 epochs of 1 earlier run (akya-cuda, 2 GPUs)"
    )


def test_auto_means_nothing_where_nothing_is_queued(experiment: Callable[..., Experiment]) -> None:
    settled = Automatic().settled(auto(experiment(cluster="local"), time="auto"), JOB)
    assert plan(settled).request.partition == ""


def test_each_job_of_a_chain_asks_for_a_segment(experiment: Callable[..., Experiment]) -> None:
    request = derive(experiment("resources.time=10d", "resources.segment=2h"))
    assert request.time_minutes == 120
    # Ten days are more than the partition allows one job, and not more than a chain.
    assert plan(experiment("resources.time=10d", "resources.segment=2h")).request == request
    assert derive(experiment("resources.time=30m", "resources.segment=2h")).time_minutes == 30


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["resources.segment=4m"], "a job shorter than 5 minutes"),
        (["resources.segment=soon"], "not a valid duration"),
        (["resources.time=10h", "resources.segment=2h", "resources.max_requeues=3"], "more jobs of this length than"),
        (
            ["resources.time=10d", "resources.segment=4d"],
            "resources.segment=4d: akya-cuda allows 3-00:00:00.*Set resources.segment=3-",
        ),
        (
            ["resources.time=1d", "resources.segment=8m", "resources.signal_seconds=300"],
            "resources.signal_seconds=300: .*here 240 s.*Set resources.segment=10",
        ),
    ],
)
def test_a_segment_that_cannot_be(experiment: Callable[..., Experiment], overrides: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan(experiment(*overrides))
