"""fastai on the cluster: the lesson's recipes, ranks on several nodes, and runs that Slurm breaks off."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slow_run import Run, check_same
from truba import Truba

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from fastai_resume_runs import JOB, make_photographs  # noqa: E402

# As in tests/training, but slow enough to be caught in mid-epoch. What a batch draws is left out, so that ranks that
# take parts of it can be compared with one process that takes all.
SLOW_JOB = (
    JOB.replace("item_tfms=RandomResizedCrop(item_size", "item_tfms=RandomResizedCrop(size")
    .replace("batch_tfms=aug_transforms(size=size, min_scale=0.7)", "batch_tfms=Normalize.from_stats(*imagenet_stats)")
    .replace("dropout=0.3", "dropout=0.0")
    + "\nimport time\nclass Pause(Callback):\n    def after_batch(self):\n        time.sleep(0.15)\n"
)
EXPERIMENT = """
# @package _global_
name: small
job: {module: small, backend: fastai}
data: {name: made, workers: 1}
train:
  batch_size: 4
  callbacks: [Averaging, Pause]
  recipe:
    - freeze
    - {lr_find: {name: find, num_it: 12, end_lr: 1.0}}
    - {fit_one_cycle: {epochs: 1, lr: find.valley}}
    - unfreeze
    - {fit_one_cycle: {epochs: 3, lr: [find.valley/10, 1e-2]}}
checkpoint: {every_steps: 3}
finish: {plots: false}
"""
PICTURES = {"show_batch", "confusion_matrix", "top_losses", "learning_curves"}


class SmallRun(Run):
    """A slow run of four epochs of eleven steps, on photographs that the test has made."""

    steps_per_epoch = 11

    def prepare(self) -> list[str]:
        truba, data = self.truba, self.truba.project / "data"
        if not data.exists():
            make_photographs(data / "photographs")
            truba.cluster.run(["chown", "-R", truba.user, str(data)], user="root")
        truba.write("jobs/small.py", SLOW_JOB)
        truba.cluster.run(["mkdir", "-p", str(truba.project / "conf" / "experiment")], user=truba.user)
        truba.write("conf/experiment/small.yaml", EXPERIMENT)
        return ["+experiment=small", f"data.folder={data}"]


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Result and history of the run that nothing interrupts."""
    run = SmallRun(Truba(cluster, "fastai-uninterrupted"))
    return run.finish(), run.history()


class PetsRun(Run):
    """One of the lesson's recipes with a small network, on small crops of the photographs that the packages bring."""

    experiment = "pets"

    def prepare(self) -> list[str]:
        return [
            f"+experiment={self.experiment}", "data.name=crops", f"data.folder={self.truba.project / 'data'}",
            "data.workers=0", "data.options.size=32", "+data.options.item_size=40", "train.batch_size=8",
            "job.options.arch=squeezenet1_1", "job.options.pretrained=false", "train.epochs=1",
        ]  # fmt: skip


class TwoStageRun(PetsRun):
    experiment = "pets_two_stage"

    def prepare(self) -> list[str]:
        return [*super().prepare(), "data.pack=true"]


class DeepRun(PetsRun):
    experiment = "pets_deep_fp16"


def test_the_lessons_three_recipes(cluster: Cluster) -> None:
    kinds = {PetsRun: (2, set()), TwoStageRun: (4, {"lr_find_find", "lr_find_find_all"}), DeepRun: (4, set())}
    runs = {kind: kind(Truba(cluster, kind.experiment)) for kind in kinds}
    for kind, (epochs, more) in kinds.items():
        run = runs[kind]
        result = run.finish(seconds=400)
        assert (result["epochs"], len(run.history()), result["tasks"]) == (epochs, epochs, 1)
        assert result["architecture"] == "squeezenet1_1" and len(result["vocab"]) == 6
        assert {"loss", "val_loss", "val_error_rate"} == set(result["metrics"])
        assert {file.stem for file in (run.path / "plots").glob("*.png")} == PICTURES | more
        for name in (result["predictions"], result["most_confused"], result["model"], result["export"]):
            assert (run.path / name).stat().st_size > 30, name
        assert sum(row["state"] == "COMPLETED" for row in run.truba.status()) == 1
    rates = json.loads((runs[TwoStageRun].path / "lr_find_find.json").read_text())
    assert set(rates["suggestions"]) == {"minimum", "steep", "valley", "slide"}
    assert "needs a GPU; using float32 here" in runs[DeepRun].log()


class StagedRun(PetsRun):
    """Packed once, and copied to each node's own disk, from where its ranks read."""

    def prepare(self) -> list[str]:
        return [*super().prepare(), "data.pack=true", "data.stage_to_node=true", "finish.plots=false"]

    def pack_read_by(self, process: int) -> str:
        """The packed file that a process has open."""
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):  # It was closed just now.
                if (path := os.readlink(entry)).endswith("crops-40.pack"):
                    return path
        return ""


def test_one_rank_packs_and_each_node_reads_a_copy_of_its_own(cluster: Cluster) -> None:
    run = StagedRun(Truba(cluster, "fastai-staged"), "resources.nodes=2", "resources.gpus=2", "resources.time=15m")
    run.wait_until(lambda: "step" in run.progress())
    read = [Path(run.pack_read_by(process)) for process in run.workers()]
    copies = {path for path in read if path.parent.name.startswith("truba-")}
    assert (len(read), len({*read}), len(copies)) == (4, 2, 2), f"these packed files were read: {read}"
    result = run.finish()
    assert (result["tasks"], result["epochs"]) == (4, 2)
    assert (run.log().count("packing the images of"), run.log().count("copied ")) == (1, 2)
    assert not any(copy.parent.exists() for copy in copies), "the node's disk is as it was"
    assert [file.name for file in (run.truba.project / "data" / "packed").glob("*.pack")] == ["crops-40.pack"]


def test_two_nodes_of_two_ranks_agree_with_one_process(cluster: Cluster, whole: Any) -> None:
    run = SmallRun(Truba(cluster, "fastai-ranks"), "resources.nodes=2", "resources.gpus=2")
    result = run.finish(seconds=300)
    shown = cluster.run(["scontrol", "--oneliner", "show", "job", run.job_id]).stdout
    assert "NumNodes=2" in shown and "NumTasks=4" in shown and "gres/gpu=4" in shown
    assert (result["tasks"], result["steps"], result["epochs"]) == (4, whole[0]["steps"], whole[0]["epochs"])
    assert result["metrics"] == pytest.approx(whole[0]["metrics"], rel=1e-4)
    for mine, theirs in zip(run.history(), whole[1], strict=True):
        assert {name: float(value or 0) for name, value in mine.items()} == pytest.approx(
            {name: float(value or 0) for name, value in theirs.items()}, rel=1e-3
        )
    assert "rank 3 of 4, meeting at akya" in run.log() and (run.path / "predictions.npy").exists()


def test_two_ranks_on_two_nodes_that_slurm_interrupts_end_as_if_it_had_not(cluster: Cluster) -> None:
    """The signal in mid-epoch, and a kill of one rank; each time both go on from the same step."""
    settings = ["resources.nodes=2", "resources.gpus=1"]
    undisturbed = SmallRun(Truba(cluster, "fastai-ranks-whole"), *settings)
    run = SmallRun(Truba(cluster, "fastai-ranks-cut"), *settings)
    run.wait_for_step(1)
    cluster.run(["scancel", "--signal=USR2", run.job_id])
    run.wait_until(lambda: run.starts() > 1)
    run.wait_for_step(2)
    os.kill(random.choice(run.ranks()), signal.SIGKILL)
    run.wait_for_step(3)
    result = undisturbed.finish()
    check_same(run, (result, undisturbed.history()), restarts=2, tasks=2)


def test_a_preemption(truba: Truba, whole: Any) -> None:
    run = SmallRun(truba, "resources.partition=lowprio")
    run.wait_for_step(1)
    better = truba.cluster.preempt(["akya1", "akya2", "akya3", "akya4"])
    truba.cluster.wait_for_state(better, "COMPLETED", timeout=240)
    check_same(run, whole, restarts=1, steps_lost=0)


def test_kills_with_reading_processes(truba: Truba, whole: Any) -> None:
    """A few here; tests/training has the many, which need not wait for Slurm's requeue delay."""
    run = SmallRun(truba)
    moments = random.Random(4)
    for start in (1, 2):
        run.wait_for_step(start)
        assert not (run.path / "result.json").exists(), f"the run was over after {start - 1} kills"
        time.sleep(moments.uniform(0, 0.4))  # The moment is the test's subject.
        run.kill()
    check_same(run, whole, restarts=2)
