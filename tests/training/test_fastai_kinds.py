"""Kinds of fastai jobs beside photographs: tables, ratings, running text, a user's own data sets and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastai_resume_runs import Ask
from forked_starts import INTERRUPTED

from truba_runner.runs.run_directory import RunDir

FRAME = """
import numpy as np, pandas as pd
from fastai.tabular.all import *
from fastai.collab import *

def load_items(name, folder, column="job"):
    dice = np.random.default_rng(0)
    return pd.DataFrame({
        "age": dice.integers(18, 80, 60).astype(float), column: dice.choice(list("abc"), 60),
        "height": np.where(dice.random(60) < 0.1, np.nan, dice.random(60)), "y": dice.choice(["no", "yes"], 60),
    })
"""
TABLE = (
    FRAME
    + """
def data_block(items, column="job"):
    splits = RandomSplitter(seed=1)(range_of(items))
    names = [column], ["age", "height"], "y"
    return TabularPandas(items, [Categorify, FillMissing, Normalize], *names, CategoryBlock(), splits=splits)

def build_learner(dls):
    return tabular_learner(dls, layers=[8], metrics=[accuracy, F1Score()])
"""
)
LOADERS = (
    FRAME
    + """
def data_block(items):
    return TabularDataLoaders.from_df(items, procs=[Categorify, FillMissing, Normalize], cat_names=["job"],
                                      cont_names=["age", "height"], y_names="y", valid_idx=list(range(40, 60)))

def build_learner(dls):
    return tabular_learner(dls, layers=[8], metrics=accuracy)
"""
)
RATINGS = """
import numpy as np, pandas as pd
from fastai.collab import *

def load_items(name, folder):
    dice = np.random.default_rng(0)
    columns = {"user": dice.integers(0, 9, 60), "film": dice.choice(list("abcdef"), 60), "stars": dice.random(60) * 5}
    return pd.DataFrame(columns)

def data_block(items):
    return CollabDataLoaders.from_df(items, seed=3)

def build_learner(dls):
    return collab_learner(dls, n_factors=4, y_range=(0, 5.5))
"""
TEXT = """
import numpy as np, pandas as pd
from fastai.text.all import *

def load_items(name, folder):
    dice = np.random.default_rng(0)
    words = np.array("good bad film fine poor actor scene great dull end".split())
    return pd.DataFrame({"text": [" ".join(dice.choice(words, size=dice.integers(4, 30))) for _ in range(50)]})

def data_block(items):
    block = TextBlock.from_df("text", is_lm=True, seq_len=12, n_workers=0)
    return DataBlock(blocks=block, get_x=ColReader("text"), splitter=RandomSplitter(0.25, seed=2))

def build_learner(dls):
    config = {**awd_lstm_lm_config, "emb_sz": 8, "n_hid": 8, "n_layers": 1}
    return language_model_learner(dls, AWD_LSTM, config=config, pretrained=False, metrics=[accuracy, Perplexity()])
"""
# Bare imports: Learner gets fit_one_cycle elsewhere.
DATASETS = """
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner

class Numbers(torch.utils.data.Dataset):
    def __init__(self, first):
        self.first = first
    def __len__(self):
        return 30
    def __getitem__(self, index):
        x = torch.randn(4, generator=torch.Generator().manual_seed(self.first + index))
        return x + 0.1 * torch.randn(4), (x.sum() > 0).long()

def load_items(name, folder):
    return [0, 100]

def data_block(items, batch_size):
    return DataLoaders.from_dsets(*map(Numbers, items), bs=batch_size)

def half(pred, target):
    return (pred.argmax(-1) == target).float().mean() / 2

def other():
    def half(pred, target):
        return torch.tensor(0.25)
    return half

def per_class(pred, target):
    return torch.tensor([0.5, 0.75])

def build_learner(dls):
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(6, 2))
    return Learner(dls, net, loss_func=torch.nn.CrossEntropyLoss(), metrics=[half, other()])
"""
# What validation has of batches.
JOBS = {"table": TABLE, "loaders": LOADERS, "ratings": RATINGS, "text": TEXT, "datasets": DATASETS}


def sections(**more: Any) -> dict[str, Any]:
    return {
        "train": {"epochs": 2, "batch_size": 8, "recipe": [], "callbacks": [], **more.pop("train", {})},
        "data": {"name": "made", **more.pop("data", {})},
        "checkpoint": {"every_steps": 2, "save_model": True},
        **more,
    }


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def result(folder: Path) -> dict[str, Any]:
    found = RunDir(folder).result()
    return {key: found[key] for key in ("weights_sha256", "metrics", "steps", "epochs")}


@pytest.fixture(scope="module")
def ended(start: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, job in JOBS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        given = sections(train={"learning_rate": 0.02}, tensorboard={"graph": True})
        assert start(folders[name], job=job, sections=given)["status"] == 0, log(folders[name])
    return folders


@pytest.mark.parametrize("kind", JOBS)
def test_each_kind_goes_on_as_if_nothing_had_been(
    kind: str, ended: dict[str, Path], start: Ask, tmp_path: Path
) -> None:
    given = sections(train={"learning_rate": 0.02}, tensorboard={"graph": True})
    steps = RunDir(ended[kind]).result()["steps"] // 2
    # Killed at its third step; then a signal at the validation's first batch; a kill in the second epoch.
    assert start(tmp_path / "run", job=JOBS[kind], sections=given, look=3, kill_after=0)["status"] == -9
    stopped = start(tmp_path / "run", job=JOBS[kind], sections=given, stop="SIGTERM", look=steps - 2 + 1)
    assert stopped["status"] == INTERRUPTED, log(tmp_path / "run")
    rest = RunDir(ended[kind]).result()["looks"]
    assert start(tmp_path / "run", job=JOBS[kind], sections=given)["status"] == 0, log(tmp_path / "run")
    # How many fewer depends on whether the save before the kill was complete.
    assert RunDir(tmp_path / "run").result()["looks"] < rest
    assert result(tmp_path / "run") == result(ended[kind])
