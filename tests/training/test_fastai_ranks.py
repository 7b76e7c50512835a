"""Several fastai processes, gloo between them: they train as one would, and go on together after an interruption."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import fastai_resume_runs as runs
import numpy as np
import pytest
from event_files_read import curves
from fastai_resume_runs import Ask
from forked_starts import INTERRUPTED
from test_fastai_kinds import DATASETS

from truba_runner.runs.run_directory import RunDir

FINDER, HEAD, VALIDATION, SECOND_FINDER, WHOLE = 11, 4, 2, 9, 5

# What one process draws for a batch, ranks draw for their shares: without dropout, and with crops of items alone, whose
# chances are each item's own, the only difference left is the order in which numbers are added up.
COMPARABLE = runs.JOB.replace(
    "item_tfms=RandomResizedCrop(item_size, min_scale=0.5), batch_tfms=aug_transforms(size=size, min_scale=0.7)",
    "item_tfms=RandomResizedCrop(size, min_scale=0.5), batch_tfms=Normalize.from_stats(*imagenet_stats)",
)


def log(folder: Path, rank: int = 0) -> str:
    return (folder / ("log" if rank == 0 else f"log{rank}")).read_text()


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(start: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start(folder, tasks=2)["statuses"] == [0, 0], log(folder) + log(folder, 1)
    return folder


def test_two_ranks_train_as_one_process_does(start: Ask, tmp_path: Path) -> None:
    """With BatchNorm, weight decay, an odd validation set, finders, and a callback that loads weights."""
    sections = {
        "job": {"options": {"dropout": 0.0}},
        "train": {"callbacks": ["SaveModelCallback", {"class_name": "ReduceLROnPlateau"}]},
        "checkpoint": {"save_model": True},
    }
    for tasks in (1, 2):
        ended = start(tmp_path / f"{tasks}", tasks=tasks, sections=sections, job=COMPARABLE)
        assert ended["statuses"] == [0] * tasks, log(tmp_path / f"{tasks}", tasks - 1)
    one, two = tmp_path / "1", tmp_path / "2"
    assert start(two, do="in_fork", function="weights", other=str(one)) < 5e-6
    for name in ("find", "all"):
        found = [json.loads((folder / f"lr_find_{name}.json").read_text()) for folder in (one, two)]
        assert found[0]["losses"] == pytest.approx(found[1]["losses"], rel=1e-4)
        rates = [{key: rate or 0 for key, rate in one["suggestions"].items()} for one in found]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    np.testing.assert_allclose(np.load(one / "predictions.npy"), np.load(two / "predictions.npy"), atol=1e-5)
    result = RunDir(two).result()
    assert result["metrics"] == pytest.approx(RunDir(one).result()["metrics"], rel=1e-5)
    assert (result["tasks"], result["devices"], result["steps"]) == (2, ["CPU:0"] * 2, 2 * HEAD + 2 * WHOLE)
    for row, other in zip(history(one), history(two), strict=True):
        assert {name: float(value or 0) for name, value in row.items()} == pytest.approx(
            {name: float(value or 0) for name, value in other.items()}, rel=1e-4
        )
    # Rank 0 writes, and it alone.
    assert len(curves(two)["train", "batch_loss"]) == 2 * HEAD + 2 * WHOLE
    assert "stage 3" in log(two) and "stage 3" not in log(two, rank=1)


# Each look is counted from the start before it: in the finder; with the frozen body; in validation; with all layers; in
# the predictions. Only one of the ranks is told, and all agree in the batch after.
STOPS = [
    ("SIGTERM", FINDER - 3, 1, []),
    ("SIGUSR2", FINDER + 2, 1, [0, 3]),
    ("SIGUSR2", HEAD - 3 + 1, 0, [0, HEAD]),
    ("SIGTERM", VALIDATION + HEAD + VALIDATION + SECOND_FINDER + 1, 1, [2, 2]),
    ("SIGUSR2", WHOLE - 2 + VALIDATION + WHOLE + VALIDATION + 1, 1, [4, 0]),
]


def assert_same_end(start: Ask, folder: Path, reference: Path) -> None:
    ended, expected = RunDir(folder).result(), RunDir(reference).result()
    for key in ("weights_sha256", "metrics", "epochs", "steps"):
        assert ended[key] == expected[key], key
    assert history(folder) == history(reference) and curves(folder) == curves(reference)
    assert (folder / "predictions.npy").read_bytes() == (reference / "predictions.npy").read_bytes()


def test_two_ranks_stop_at_the_same_step_and_end_as_if_they_had_not(
    start: Ask, undisturbed: Path, tmp_path: Path
) -> None:
    for name, look, rank, position in STOPS:
        ended = start(tmp_path, tasks=2, stop=name, look=look, on_rank=rank)
        assert ended["statuses"] == [INTERRUPTED] * 2, (name, look, log(tmp_path)[-3000:] + log(tmp_path, 1)[-3000:])
        found = start(tmp_path, do="in_fork", function="checkpoint")
        assert found.get("position", []) == position, (name, look)
    assert start(tmp_path, tasks=2)["statuses"] == [0, 0], log(tmp_path)
    assert_same_end(start, tmp_path, undisturbed)


def test_two_ranks_that_are_killed_end_as_if_they_had_not(start: Ask, undisturbed: Path, tmp_path: Path) -> None:
    sections = {"checkpoint": {"every_steps": 1}}
    for look in (FINDER + 3, 4):
        ended = start(tmp_path, tasks=2, sections=sections, look=look, kill_after=0.03, on_rank=1)
        assert ended["statuses"] == [-signal.SIGKILL] * 2
    damaged = max((tmp_path / "checkpoints").glob("checkpoint-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert start(tmp_path, tasks=2, sections=sections)["statuses"] == [0, 0], log(tmp_path) + log(tmp_path, 1)
    assert f"{damaged.name} is damaged" in log(tmp_path) and "is damaged" not in log(tmp_path, 1)
    assert_same_end(start, tmp_path, undisturbed)


# A signal while the first rank could train already, and the second still gets ready for it.
PARTED = (
    runs.JOB
    + """
import signal, time
from truba_runner.training.fastai import train as backend

def tell(context, learner, original=backend.print_summary):
    original(context, learner)
    Path("ready.new").write_text(str(os.getpid()))
    Path("ready.new").rename("ready")

def check(self, stages, original=backend.Course.check):
    original(self, stages)
    if os.environ["RANK"] == "1":
        end = time.monotonic() + 300
        while not Path("ready").exists():
            assert time.monotonic() < end, "rank 0 has not come so far"
            time.sleep(0.01)
        time.sleep(1)
        for process in (int(Path("ready").read_text()), os.getpid()):
            os.kill(process, signal.SIGUSR2)

backend.print_summary, backend.Course.check = tell, check
"""
)


def test_a_signal_before_all_ranks_can_save_ends_all_alike(start: Ask, tmp_path: Path) -> None:
    ended = start(tmp_path, tasks=2, job=PARTED)
    assert ended["statuses"] == [INTERRUPTED] * 2, log(tmp_path)
    assert "nothing to save yet" in log(tmp_path) and "nothing to save yet" in log(tmp_path, 1)


def test_a_checkpoint_of_another_number_of_ranks_is_refused(start: Ask, tmp_path: Path) -> None:
    assert start(tmp_path, tasks=2, stop="SIGUSR2", look=FINDER + 2)["statuses"] == [INTERRUPTED] * 2
    assert start(tmp_path)["status"] == 1
    assert "devices was 2 then and is 1 now" in log(tmp_path)


def test_a_rank_that_fails_takes_the_other_along(start: Ask, tmp_path: Path) -> None:
    job = runs.JOB + (
        "\nclass Failing(Callback):\n    def after_batch(self):\n"
        "        if self.training and os.environ['RANK'] == '1':\n            raise ValueError('mine')\n"
    )
    sections: dict[str, Any] = {"train": {"callbacks": ["Failing"], "recipe": [{"fit": {"epochs": 1}}]}}
    assert start(tmp_path, tasks=2, job=job, sections=sections)["statuses"] == [1, 1]
    assert "mine" in log(tmp_path, 1) and "RankLost: rank 0 has lost the connection to another rank" in log(tmp_path)


def test_ranks_whose_weights_differ_are_found_out(start: Ask, tmp_path: Path) -> None:
    job = runs.JOB + (
        "\nclass Own(Callback):\n    def after_fit(self):\n        with torch.no_grad():\n"
        "            next(self.model.parameters()).add_(int(os.environ['RANK']))\n"
    )
    sections: dict[str, Any] = {"train": {"callbacks": ["Own"], "recipe": [{"fit": {"epochs": 1}}]}}
    assert start(tmp_path, tasks=2, job=job, sections=sections)["statuses"] == [1, 1]
    assert "the ranks have trained different weights" in log(tmp_path)


def test_each_rank_gets_the_batch_size_where_the_config_says_so(start: Ask, tmp_path: Path) -> None:
    train = {"batch_size": 10, "callbacks": [], "recipe": [{"fit": {"epochs": 1}}]}
    sections: dict[str, Any] = {"train": {**train, "batch_scaling": "per_replica"}}
    assert start(tmp_path / "each", tasks=2, sections=sections)["statuses"] == [0, 0], log(tmp_path / "each")
    assert RunDir(tmp_path / "each").result()["steps"] == 2  # 45 examples, 20 a step.
    train["batch_size"] = 9
    assert start(tmp_path / "odd", tasks=2, sections={"train": train})["statuses"] == [1, 1]
    assert "A batch of 9 cannot be divided equally among 2 processes. Set it to 8 or 10" in log(tmp_path / "odd")


OWN_MEAN = """
class Centred(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = None
    def forward(self, x):
        shifted = x if self.last is None else x - 0.1 * self.last
        if self.training:
            self.last = x.detach().mean(0)
        return shifted

class OwnMean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(1.0))
    def forward(self, predicted, target):
        loss = torch.nn.functional.cross_entropy(predicted, target)
        self.mean.lerp_(loss.detach(), 0.3)
        return loss / self.mean

def build_learner(dls):
    return Learner(dls, torch.nn.Sequential(Centred(), torch.nn.Linear(4, 2)), loss_func=OwnMean(), metrics=[])
"""


def test_ranks_that_remember_other_things_each_go_on_with_their_own(start: Ask, tmp_path: Path) -> None:
    """A network with a state after its own rows, and a loss that weighs by the mean of its own rows' losses so far."""
    job = DATASETS + OWN_MEAN
    train = {"epochs": 2, "callbacks": [], "recipe": []}
    # By rank 0's clock a checkpoint is due after each step.
    clock = {"every_steps": None, "every_minutes": 1e-6}
    sections = {"train": {**train, "batch_size": 8}, "checkpoint": clock, "finish": {"evaluate": False}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, tasks=2, job=job, sections=sections)["statuses"] == [0, 0], log(whole) + log(whole, 1)
    killed = start(cut, tasks=2, job=job, sections=sections, look=4, kill_after=0.0)
    assert killed["statuses"] == [-signal.SIGKILL] * 2, log(cut)
    found = start(cut, do="in_fork", function="others")
    assert {keys[-1] for keys in found} >= {"loss_func.mean", "model.0.last"}
    assert start(cut, tasks=2, job=job, sections=sections)["statuses"] == [0, 0], log(cut) + log(cut, 1)
    assert "; restored in" in log(cut)
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]
