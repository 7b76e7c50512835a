"""Start small fastai runs for tests, each start in its own process, which may really be killed.

As a script it reads orders from standard input, one JSON object a line (the arguments of `start`), and answers each
with a line. torch and fastai are imported once: every start is a fork of a process that has not used them yet.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked_starts import StopAt, has_ended, in_child, small_disk

from truba_runner.code import job_module
from truba_runner.config import schema
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.storage.files import write_atomically
from truba_runner.training import backend

# Small, with everything that makes resuming hard: random crops of items and batches, dropout, BatchNorm, and a stateful
# callback that draws from the host's random numbers and changes the model with them.
JOB = """
import random
from fastai.vision.all import *

def load_items(name, folder, count=60):
    return sorted(get_image_files(folder / "photographs"))[:count]

def data_block(items, size=16, item_size=24, held_out=0.25):
    label = using_attr(RegexLabeller(r"(.+)_\\d+.jpg$"), "name")
    return DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=sorted({label(item) for item in items}))),
        splitter=RandomSplitter(held_out, seed=3), get_y=label,
        item_tfms=RandomResizedCrop(item_size, min_scale=0.5), batch_tfms=aug_transforms(size=size, min_scale=0.7),
    )

class Net(nn.Sequential):
    def __init__(self, width, classes, dropout):
        body = nn.Sequential(ConvLayer(3, width), ConvLayer(width, width, stride=2))
        head = nn.Sequential(AdaptiveAvgPool(), Flatten(), nn.Dropout(dropout), nn.Linear(width, classes))
        super().__init__(body, head)

def build_learner(dls, width=6, dropout=0.3):
    return Learner(dls, Net(width, dls.c, dropout), metrics=error_rate, splitter=lambda m: L(m[0], m[1]).map(params))

class Averaging(Callback):
    order = 70

    def __init__(self):
        self.total = 0.0

    def after_batch(self):
        if self.training:
            self.total = 0.9 * self.total + float(self.loss) * random.random()

    def before_epoch(self):
        with torch.no_grad():
            next(self.model.parameters()).mul_(1 + 1e-3 * self.total)
"""

TWO_STAGES = [
    "freeze",
    {"lr_find": {"name": "find", "num_it": 12, "start_lr": 1e-4, "end_lr": 1.0}},
    {"fit_one_cycle": {"epochs": 2, "lr": "find.valley"}},
    "unfreeze",
    {"lr_find": {"name": "all", "num_it": 10}},
    {"resize": {"size": 20, "batch_size": 8}},
    {"fit_one_cycle": {"epochs": 2, "lr": ["all.steep/10", 1e-2]}},
]

SECTIONS: dict[str, Any] = {
    "name": "small",
    "job": {"module": "small", "backend": "fastai"},
    "data": {"name": "made", "workers": 0},
    "train": {
        "batch_size": 10,
        "recipe": TWO_STAGES,
        "callbacks": [
            {"class_name": "EarlyStoppingCallback", "config": {"patience": 30}},
            {"class_name": "ReduceLROnPlateau", "config": {"patience": 1, "min_delta": 0.1}},
            "SaveModelCallback",
            "Averaging",
        ],
    },
    "resources": {"partition": "", "account": "", "gpus": 0},
    "cluster": {"name": "test"},
    "environment": {"name": "test"},
    "checkpoint": {"save_model": False},
    "sweep": {},
    "tensorboard": {"every_steps": 1},
    # Drawing takes a quarter of such a run's time.
    "finish": {"plots": False},
}


# The type of the fixture `start`.
Ask = Callable[..., Any]


def make_photographs(folder: Path, count: int = 60) -> None:
    """Write JPEGs of three distinguishable kinds, the same each time."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for number in range(count):
        kind = number % 3
        pixels = dice.integers(0, 120, (32, 40, 3))
        pixels[:, :, kind] += 90
        Image.fromarray(pixels.astype("uint8")).save(folder / f"Kind_{'abc'[kind]}_{number}.jpg", quality=95)


def signal_step(number: int) -> None:
    """Signal this process and its data-loading children from another process, as Slurm does; leave them time to die."""
    readers = [process.pid for process in multiprocessing.active_children()]
    sender = os.fork()
    if not sender:
        for process in [*readers, os.getppid()]:
            os.kill(process or 0, number)
        os._exit(0)
    os.waitpid(sender, 0)
    for _ in readers:
        time.sleep(0.05)


def watch_looks(stop: StopAt) -> None:
    """Count each time that the training checks for an interruption: once a batch."""
    from truba_runner.training.fastai import loop, resume

    for owner, names in ((loop.Watcher, ["look"]), (resume.Resume, ["trained", "validated"])):
        for name in names:
            original = getattr(owner, name)

            def counted(self: Any, *given: Any, original: Any = original) -> Any:
                stop.count(lambda which: signal_step(signal.Signals[which]))
                return original(self, *given)

            setattr(owner, name, counted)


def train(folder: Path, sections: dict[str, Any], job: str, stop: StopAt, rank: int = 0, tasks: int = 1) -> None:
    """Train one start of one rank as the worker does."""
    values = {key: {**SECTIONS.get(key, {}), **sections.get(key, {})} for key in {*SECTIONS, *sections} - {"name"}}
    values = {**values, "name": "small"}
    values["data"] = {"folder": str(folder.parent), **values["data"]}
    run = RunDir(folder)
    run.create()
    # Another rank may be reading the file.
    write_atomically(folder / "small.py", job.encode(), durable=False)
    stop.listen()
    watch_looks(stop)
    os.chdir(folder)
    loaded = job_module.load(folder / "small.py")
    progress = Progress(run, "1", writes=rank == 0)
    given = backend.Context(schema.experiment_from(values), loaded, run, progress, stop, rank, tasks)
    with stop.recognised():
        result = backend.load("fastai", "find" if given.experiment.sweep.kind == "lr_find" else "train")(given)
    if rank == 0:
        run.write_result({**result, "looks": stop.looks})


def start(
    folder: str,
    sections: dict[str, Any] | None = None,
    job: str = JOB,
    stop: str | None = None,
    look: int = 0,
    kill_after: float | None = None,
    slow_save: float = 0.0,
    disk_kb: int = 0,
    tasks: int = 1,
    on_rank: int = 0,
) -> dict[str, Any]:
    """Train in one fork per rank until all end.

    At check number `look` for interruptions, rank `on_rank` gets the signal `stop`, or `kill_after` seconds later all
    ranks are killed.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if not (path.parent / "photographs").exists():
        make_photographs(path.parent / "photographs")
    (path / "reached").unlink(missing_ok=True)
    port = random.randint(20000, 32000)
    children = []
    for rank in range(tasks):
        child = os.fork()
        if not child:
            if disk_kb:
                small_disk(path / "checkpoints", disk_kb)
            place_on_slurm(rank, tasks, port)
            own = rank == on_rank
            awaits_kill = own and kill_after is not None
            given = StopAt(stop if own else None, look if own else 0, path / "reached", awaits_kill)
            in_child(
                path / ("log" if rank == 0 else f"log{rank}"),
                lambda given=given, rank=rank: train(path, sections or {}, job, given, rank, tasks),
                slow_save,
            )
        children.append(child)
    if kill_after is not None:
        while not (path / "reached").exists() and not has_ended(children[on_rank]):
            time.sleep(0.01)
        time.sleep(kill_after)
        for child in children:
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"status": statuses[0], "statuses": statuses}


def place_on_slurm(rank: int, tasks: int, job_id: int) -> None:
    """Set the variables by which ranks find each other, all on this machine."""
    os.environ.update(
        SLURM_JOB_NODELIST="localhost", SLURM_TASKS_PER_NODE=str(tasks), SLURM_JOB_ID=str(job_id), OMP_NUM_THREADS="1"
    )


def in_fork(function: str, folder: str, **given: Any) -> Any:
    """Call a function of `fastai_looks` in a child process and return its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(2, 1)  # fastai prints to stdout, which carries the answers.
            import fastai_looks

            os.chdir(folder)
            with os.fdopen(writing, "w") as answer:
                json.dump(getattr(fastai_looks, function)(Path(folder), **given), answer)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


def main() -> None:
    # Threads do not survive a fork.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    import fastai.vision.all  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        do = {"start": start, "in_fork": in_fork}[order.pop("do", "start")]
        print(json.dumps(do(**order)), flush=True)


if __name__ == "__main__":
    main()
