"""All that a fastai training depends on goes on where it was: found by walking its objects, whoever holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastai_resume_runs import Ask
from forked_starts import INTERRUPTED

from truba_runner.runs.run_directory import RunDir

BASE = """
import collections, copy, random
import numpy as np, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner, Metric
from fasttransform import ItemTransform

def load_items(name, folder):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    return [{"x": row, "y": int(row[:3].argmax())} for row in x]

def value_of(item): return torch.tensor(item["x"])
def label_of(item): return item["y"]

def data_block(items):
    return DataBlock((TransformBlock, CategoryBlock), get_x=value_of, get_y=label_of,
                     splitter=IndexSplitter(list(range(32, 40))))

def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))

def build_learner(dls):
    return Learner(dls, network(), lr=1e-2)
"""

# Each changes what is trained by something that no state dict of the learner's has.
KINDS = {
    "an average of the network, swapped in for the validation": """
class Own(Callback):
    def before_fit(self):
        if not hasattr(self, "shadow"):
            self.shadow = copy.deepcopy(self.learn.model)
    def after_step(self):
        with torch.no_grad():
            for mine, theirs in zip(self.shadow.parameters(), self.learn.model.parameters()):
                mine.data.lerp_(theirs, 0.1)
    def swap(self):
        for mine, theirs in zip(self.shadow.parameters(), self.learn.model.parameters()):
            mine.data, theirs.data = theirs.data.clone(), mine.data.clone()
    def before_validate(self): self.swap()
    def after_validate(self):
        self.swap()
        with torch.no_grad():
            for mine, theirs in zip(self.shadow.parameters(), self.learn.model.parameters()):
                theirs.lerp_(mine, 0.5)
""",
    "a loss with a weight that is trained, and a buffer that is annealed": """
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("share", torch.ones(1), persistent=False)
        self.seen = 0
    def forward(self, pred, target):
        self.seen += self.training
        ce = nn.functional.cross_entropy(pred * self.scale, target.long())
        return ce * self.share + 0.01 * self.seen * self.scale.square().sum()

class Own(Callback):
    def after_batch(self):
        if self.training:
            self.learn.loss_func.share.mul_(0.95)

def build_learner(dls):
    loss = Loss()
    return Learner(dls, network(), loss_func=loss, lr=1e-2, splitter=lambda m: [[*m.parameters(), *loss.parameters()]])
""",
    "random streams, lists, sets and deques of a callback": """
class Helper:
    def __init__(self):
        self.recent, self.seen, self.table = collections.deque(maxlen=3), set(), {(0, 1): 0.0}

class Own(Callback):
    def __init__(self):
        self.streams = np.random.default_rng(1), random.Random(2), torch.Generator().manual_seed(3)
        self.old, self.helper, self.shared = np.random.RandomState(4), Helper(), []
    def after_batch(self):
        if not self.training:
            return
        one, two, three = self.streams
        drawn = one.random() + two.random() + float(torch.rand((), generator=three)) + self.old.rand()
        self.helper.recent.append(drawn)
        self.helper.seen.add(round(drawn, 1))
        self.helper.table[0, 1] += drawn
        self.shared.append(torch.tensor(drawn))
        self.learn.pushed = getattr(self.learn, "pushed", 0.0) + drawn
        factor = sum(self.helper.recent) + len(self.helper.seen) + self.helper.table[0, 1] + float(self.shared[-1])
        with torch.no_grad():
            next(self.model.parameters()).mul_(1 + 1e-3 * (factor + self.learn.pushed))
""",
    "a second network with an optimizer and a schedule of its own": """
class Own(Callback):
    def __init__(self):
        self.teacher = network()
        self.optimizer = torch.optim.Adam(self.teacher.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)
    def after_batch(self):
        if not self.training:
            return
        loss = (self.teacher(self.xb[0]) - self.pred.detach()).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            next(self.model.parameters()).lerp_(next(self.teacher.parameters()), 0.05)
""",
    "a network with tensors, counters and a random stream that are no buffers": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.steps, self.mean = network(), 0, torch.zeros(3)
        self.stream, self.carried = torch.Generator().manual_seed(0), None
    def forward(self, x):
        out = self.inner(x)
        if self.training:
            self.steps += 1
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
            self.carried = [out.detach()[: 1 + self.steps % 3]]
            out = out + 0.1 * torch.randn(3, generator=self.stream) + self.carried[0].mean() / self.steps
        return out - self.mean

class Own(Callback):
    pass

def build_learner(dls):
    return Learner(dls, Net(), lr=1e-2)
""",
    "transforms and a job with random streams and counters of their own": """
STREAM, COUNT = np.random.default_rng(8), {"read": 0}

class Noise(ItemTransform):
    def __init__(self):
        self.stream, self.read = random.Random(1), 0
    def encodes(self, item):
        self.read += 1
        COUNT["read"] += 1
        noise = 0.1 * self.stream.random() + STREAM.random() * 0.1 + 1e-3 * (self.read + COUNT["read"])
        return item[0] + noise, item[1]

def data_block(items):
    return DataBlock((TransformBlock, CategoryBlock), get_x=value_of, get_y=label_of, item_tfms=Noise(),
                     splitter=IndexSplitter(list(range(32, 40))))

class Own(Callback):
    pass
""",
    "a loader that counts its passes": """
from fastai.data.core import DataLoaders, TfmdDL

class Widening(TfmdDL):
    passes = 0
    def get_idxs(self):
        self.passes += 1
        found = super().get_idxs()
        return found[self.passes :] + found[: self.passes]

def data_block(items):
    rows = [(value_of(item), torch.tensor(label_of(item))) for item in items]
    train, valid = Widening(rows[:32], bs=8, num_workers=0), TfmdDL(rows[32:], bs=8, num_workers=0)
    return DataLoaders(train, valid)

def build_learner(dls):
    return Learner(dls, network(), loss_func=nn.CrossEntropyLoss(), lr=1e-2)

class Own(Callback):
    pass
""",
    "what is made in the first step, or anew in each epoch": """
class Meter:
    def __init__(self):
        self.sum = 0.0

class Own(Callback):
    def before_epoch(self):
        self.meter = Meter()
    def after_batch(self):
        if self.training:
            if not hasattr(self, "shadow"):
                self.shadow, self.all = copy.deepcopy(self.model), Meter()
            self.meter.sum += 1.0
            self.all.sum += self.meter.sum
            with torch.no_grad():
                for mine, theirs in zip(self.shadow.parameters(), self.learn.model.parameters()):
                    mine.lerp_(theirs, 0.1)
                    theirs.lerp_(mine, 0.01 * (self.meter.sum + 0.1 * self.all.sum))
""",
    "a tracker that is derived from fastai's": """
class Own(EarlyStoppingCallback):
    def __init__(self):
        super().__init__(patience=20)
        self.sum = torch.zeros(2)
    def after_batch(self):
        if self.training:
            self.sum[0] += float(self.loss.detach())
    def before_epoch(self):
        with torch.no_grad():
            next(self.model.parameters()).mul_(1 + 1e-2 * (self.sum[0] + getattr(self, "wait", 0)))
""",
}
STEPS, VALIDATION = 4, 1


def sections(**more: Any) -> dict[str, Any]:
    return {
        "train": {"epochs": 3, "batch_size": 8, "recipe": [], "callbacks": ["Own"], **more.pop("train", {})},
        "checkpoint": {"every_steps": 1, **more.pop("checkpoint", {})},
        "finish": {"plots": False},
        "tensorboard": {"enabled": False},
        **more,
    }


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def result(folder: Path) -> dict[str, Any]:
    found = RunDir(folder).result()
    return {key: found[key] for key in ("weights_sha256", "metrics", "steps")}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_put_back(kind: str, start: Ask, tmp_path: Path) -> None:
    job, given = BASE + KINDS[kind], sections()
    assert start(tmp_path / "whole", job=job, sections=given)["status"] == 0, log(tmp_path / "whole")
    warned = [line for line in log(tmp_path / "whole").splitlines() if line.startswith("WARNING")]
    assert not [line for line in warned if "pictures of the predictions" not in line]
    parts = tmp_path / "parts"
    # In the first epoch; in its validation; in the second epoch, by a kill.
    assert start(parts, job=job, sections=given, stop="SIGUSR2", look=2)["status"] == INTERRUPTED, log(parts)
    assert start(parts, job=job, sections=given, stop="SIGTERM", look=STEPS - 1)["status"] == INTERRUPTED, log(parts)
    assert start(parts, job=job, sections=given, look=VALIDATION + 2, kill_after=0)["status"] == -9
    assert start(parts, job=job, sections=given)["status"] == 0, log(parts)
    assert result(parts) == result(tmp_path / "whole")


STAGES = [
    {"fit_one_cycle": {"epochs": 1}},
    {"lr_find": {"name": "find", "num_it": 5}},
    {"fit_one_cycle": {"epochs": 1}},
]


FIT, FINDER = {"fit_one_cycle": {"epochs": 1}}, {"lr_find": {"name": "find", "num_it": 6}}


@pytest.mark.parametrize("kind", ["what is made in the first step, or anew in each epoch"])
def test_it_is_put_back_between_stages(kind: str, start: Ask, tmp_path: Path) -> None:
    """A finder and a second stage begin without what the first one's beginning has made."""
    job, given = BASE + KINDS[kind], sections(train={"recipe": [FIT, FINDER, FIT], "epochs": 0})
    given["train"].pop("epochs")
    assert start(tmp_path / "whole", job=job, sections=given)["status"] == 0, log(tmp_path / "whole")
    parts = tmp_path / "parts"
    # In the finder; in the second stage.
    assert start(parts, job=job, sections=given, look=STEPS + VALIDATION + 3, kill_after=0)["status"] == -9
    assert start(parts, job=job, sections=given, stop="SIGTERM", look=4 + 3)["status"] == INTERRUPTED, log(parts)
    assert start(parts, job=job, sections=given)["status"] == 0, log(parts)
    assert result(parts) == result(tmp_path / "whole")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "loader" not in kind])
def test_a_finder_leaves_nothing_behind(kind: str, start: Ask, tmp_path: Path) -> None:
    """A run with the rate that a finder would find is the one in which it was typed in."""
    job = BASE + KINDS[kind]
    found = sections(train={"lr_find": {"rate": "valley", "num_it": 12}, "epochs": 1})
    assert start(tmp_path / "found", job=job, sections=found)["status"] == 0, log(tmp_path / "found")
    rate = RunDir(tmp_path / "found").result()["lr_find"]
    typed = sections(train={"learning_rate": rate["learning_rate"], "epochs": 1})
    assert start(tmp_path / "typed", job=job, sections=typed)["status"] == 0, log(tmp_path / "typed")
    assert result(tmp_path / "found") == result(tmp_path / "typed")
