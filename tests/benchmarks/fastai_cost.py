"""What survival costs a fastai training, as ratios of one run: python fastai_cost.py

1. Step time: a training as it runs in a job, with its random streams derived anew for each item and batch, checkpoints,
   TensorBoard, progress, history and a look for signals after every batch, over a bare `Learner.fit` of the same model
   and data. Both train in one process and take turns, an epoch each; medians of epochs.
2. A save of resnet18 with Adam: how long it holds the training up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

EXAMPLES, SIZE = 640, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="epochs of each kind")
    options = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    for arch, batch in (("tiny", 64), ("resnet18", 32)):
        with tempfile.TemporaryDirectory() as folder:
            measure(arch, batch, Path(folder), options.rounds)


def job(arch: str) -> Any:
    """Images that lie in memory: nothing is decoded, so what is added shows at its largest."""
    import torch
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        IndexSplitter,
        IntToFloatTensor,
        Learner,
        TensorImage,
        TransformBlock,
        error_rate,
        nn,
        vision_learner,
    )  # fmt: skip
    from torchvision.models import resnet18

    pixels = torch.randint(0, 256, (EXAMPLES, 3, SIZE, SIZE), dtype=torch.uint8)

    def load_items(name: str, folder: Path) -> list[int]:
        return list(range(EXAMPLES))

    def data_block(items: list[int]) -> Any:
        return DataBlock(
            blocks=(TransformBlock(batch_tfms=IntToFloatTensor), CategoryBlock(vocab=list(range(10)))),
            get_x=lambda index: TensorImage(pixels[index]),
            get_y=lambda index: index % 10,
            splitter=IndexSplitter(range(64)),
        )

    def build_learner(dls: Any) -> Any:
        if arch == "resnet18":
            return vision_learner(dls, resnet18, pretrained=False, metrics=error_rate)
        layers = [nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 10)]
        return Learner(dls, nn.Sequential(*layers), metrics=error_rate)

    return SimpleNamespace(
        __file__="benchmark", load_items=load_items, data_block=data_block, build_learner=build_learner
    )


def measure(arch: str, batch: int, folder: Path, rounds: int) -> None:
    import torch

    from truba_runner.config import schema
    from truba_runner.runs.progress import Progress
    from truba_runner.runs.run_directory import RunDir
    from truba_runner.training import backend
    from truba_runner.training.fastai.learner import data as fastai_data
    from truba_runner.training.fastai.learner import learner
    from truba_runner.training.fastai.loop import Loop
    from truba_runner.training.fastai.ranks import Ranks
    from truba_runner.training.fastai.reporter import Reporter
    from truba_runner.training.fastai.resume import Resume
    from truba_runner.training.fastai.tensorboard import StepProfiler
    from truba_runner.training.fastai.walk import Walked
    from truba_runner.training.interrupt import Interruption
    from truba_runner.training.summaries import curves

    values = {
        "name": "cost",
        "job": {"module": "cost", "backend": "fastai"},
        "data": {"name": "made", "folder": str(folder), "workers": 0},
        "train": {"batch_size": batch},
        "resources": {"partition": "", "account": "", "gpus": 0},
        "cluster": {"name": "test"},
        "environment": {"name": "test"},
    }
    run = RunDir(folder)
    run.create()
    os.chdir(folder)
    module = job(arch)
    experiment = schema.experiment_from(values)
    given = backend.Context(experiment, module, run, Progress(run, "1"), Interruption())
    device = torch.device("cpu")
    with ExitStack() as at_the_end:
        data = fastai_data.Data(given, device, at_the_end)
        ours, bare = (learner.build_learner(given, data, data.loaders()) for _ in range(2))
        told = at_the_end.enter_context(curves.opened(given, None, StepProfiler()))
        reporter, ranks = Reporter(given, ours, rounds, told), Ranks(given, device)
        loop = Loop(ours, 0, ranks, Walked(given, ours))
        resume = Resume(given, loop, reporter, {"model": []})
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(rounds + 1):
            begun = time.process_time()
            resume.stage_begins(number, number)
            with loop.installed(), loop.watched_by(resume, number):
                reporter.stage_begins(number, number, loop.steps())
                ours.fit_one_cycle(1, 1e-3)
            seconds["ours"].append(time.process_time() - begun)
            resume.wait()
            begun = time.process_time()
            bare.fit_one_cycle(1, 1e-3)
            seconds["bare"].append(time.process_time() - begun)
        tell(arch, seconds, steps=(EXAMPLES - 64) // batch)
        saves = [save(resume) for _ in range(rounds)]
        print(
            f"{arch}: a save holds the training up for {statistics.median(saves):.3f} s (largest of {rounds}: "
            f"{max(saves):.3f} s), and is {folder_size(folder / 'checkpoints') / 1e6:.0f} MB a file"
        )


def tell(arch: str, seconds: dict[str, list[float]], steps: int) -> None:
    """The first of each warms up."""
    pairs = list(zip(seconds["ours"][1:], seconds["bare"][1:], strict=True))
    ratios = [ours / bare for ours, bare in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    each = [1e3 * statistics.median(kind) / steps for kind in zip(*pairs, strict=True)]
    print(
        f"{arch}: step time {middle:.3f} of a bare Learner.fit (median of {len(ratios)} turns; quartiles {low:.3f} to "
        f"{high:.3f}; {each[0]:.1f} ms and {each[1]:.1f} ms a step, with validation and the save of each epoch)",
        flush=True,
    )


def save(resume: Any) -> float:
    from truba_runner.runs.checkpoints import Position

    begun = time.perf_counter()
    resume._save(Position(99, 0), beside=resume._besides(finished=True))
    spent = time.perf_counter() - begun
    resume.wait()
    return spent


def folder_size(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.glob("checkpoint-*"))


if __name__ == "__main__":
    main()
