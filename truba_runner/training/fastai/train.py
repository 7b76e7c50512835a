"""Train a job's fastai learner through the stages of a recipe, evaluate it and write the result."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from truba_runner.config import lr_find, recipe
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training import plots
from truba_runner.training.backend import Context
from truba_runner.training.fastai import outputs, tensorboard
from truba_runner.training.fastai import state as fastai_state
from truba_runner.training.fastai.learner import architectures
from truba_runner.training.fastai.learner import loaders as fastai_loaders
from truba_runner.training.fastai.learner.batches import end_readers
from truba_runner.training.fastai.learner.data import DEFAULT_BATCH_SIZE, Data, sha256_of_split
from truba_runner.training.fastai.learner.devices import compute_the_same_each_time, describe, pick_device
from truba_runner.training.fastai.learner.devices import convolve as convolve  # A part of the backend's interface.
from truba_runner.training.fastai.learner.learner import build_learner, print_summary
from truba_runner.training.fastai.loop import Loop
from truba_runner.training.fastai.lr_finder import find_rates
from truba_runner.training.fastai.ranks import RankLost, Ranks
from truba_runner.training.fastai.reporter import Reporter
from truba_runner.training.fastai.resume import Resume
from truba_runner.training.fastai.resume import read_state as read_state  # A part of the backend's interface.
from truba_runner.training.fastai.stages import Course, steps_of
from truba_runner.training.fastai.walk import Walked
from truba_runner.training.found_rate import found_rate, record
from truba_runner.training.notes import noted
from truba_runner.training.summaries import curves
from truba_runner.training.summaries.writer import SummaryWriter
from truba_runner.training.walk.state import bytes_of_tensor

# Read when matplotlib is first imported; a node has no display.
os.environ.setdefault("MPLBACKEND", "Agg")
# The beginning of torch's message when BatchNorm gets a batch of one example.
_ONE_EXAMPLE = "Expected more than 1 value per channel when training"

IMPORTS = (__name__, "fastai.vision.all")


def train(context: Context) -> dict[str, Any]:
    """Train, evaluate, predict and save; `truba_runner.training.backend.load` describes the result.

    Raises:
        truba_runner.errors.Failed: the job's code or the config is at fault, or the GPU cannot be used.
    """
    with _explained(context), ExitStack() as at_the_end:
        return _train(context, at_the_end)


def find(context: Context) -> dict[str, Any]:
    """Run only the learning-rate finder; `truba_runner.training.backend.load` describes the result.

    Raises:
        truba_runner.errors.Failed: as `train`.
    """
    with _explained(context), ExitStack() as at_the_end:
        made = _set_up(context, _device(context), at_the_end)
        started = time.perf_counter()
        with made.loop.installed():
            suggested = _look(context, made, lr_find.stage_of(context.experiment))
        made.ranks.part()
        seconds = round(time.perf_counter() - started, 3)
        return {"suggestions": suggested, "seconds": seconds, "devices": [describe(made.device)] * context.tasks}


@contextmanager
def _explained(context: Context) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        train = context.experiment.train
        raise Failed(
            "The GPU is out of memory ({error}). Use smaller batches with train.batch_size (now {size}), half "
            "precision with train.mixed_precision=mixed_float16 (now {precision}), smaller images, or a network "
            "that is less deep.",
            error=str(error).splitlines()[0],
            size=train.batch_size or DEFAULT_BATCH_SIZE,
            precision=train.mixed_precision or "float32",
        ) from error
    except ValueError as error:
        if _ONE_EXAMPLE not in str(error):
            raise
        raise Failed(
            "BatchNorm needs batches of at least two examples, but this batch has one. Set train.batch_size to 2 "
            "or more; if it is an epoch's last batch, to a size that leaves no single example over."
        ) from error
    finally:
        end_readers()


@dataclass(frozen=True)
class _SetUp:
    """A learner that can be trained, with its device, ranks and data."""

    device: Any
    ranks: Ranks
    data: Data
    learner: Any
    loop: Loop


def _device(context: Context) -> Any:
    architectures.chosen(context)  # Find mistakes in it before any data is read.
    return pick_device(context.experiment.resources.gpus, int(os.environ.get("SLURM_LOCALID", "0")))


def _set_up(context: Context, device: Any, at_the_end: ExitStack) -> _SetUp:
    experiment = context.experiment
    # Determinism costs next to nothing on CPUs.
    if experiment.train.deterministic or device.type == "cpu":
        compute_the_same_each_time()
    ranks = Ranks(context, device)
    data = Data(context, device, at_the_end)
    learner = _learner(context, data, ranks)
    loop = Loop(learner, experiment.train.seed, ranks, Walked(context, learner), context.most_steps)
    return _SetUp(device, ranks, data, learner, loop)


def _look(context: Context, made: _SetUp, finder: recipe.Find) -> dict[str, float | None]:
    """Run a finder before all stages."""
    made.ranks.hold()
    # Random numbers are derived from the stage; -1 is before the first.
    with made.loop.on_trial(-1):
        found = find_rates(context, made.learner, finder, steps_of(made.loop))
    return found


def _train(context: Context, at_the_end: ExitStack) -> dict[str, Any]:
    device = _device(context)
    run_curves = at_the_end.enter_context(
        curves.opened(context, tensorboard.peak_bytes(device), tensorboard.StepProfiler())
    )
    setup = _set_up(context, device, at_the_end)
    experiment, learner, loop, ranks = context.experiment, setup.learner, setup.loop, setup.ranks
    rate = experiment.train.learning_rate
    with loop.installed():
        found = found_rate(context, partial(_look, context, setup), ranks.from_rank_0)
    if found is not None:
        rate = learner.lr = found
    stages = recipe.read(experiment.train.recipe, experiment.train.epochs, rate)
    reporter = Reporter(context, learner, recipe.epochs_of(stages), run_curves)
    resume = Resume(context, loop, reporter, _signature(context, learner, setup.data, stages))
    course = Course(context, learner, setup.data, loop, reporter, resume)
    course.check(stages)
    if resume.stage < 0 and context.rank == 0:
        with loop.walked.kept():
            _show(context, learner, run_curves.writer)
    with loop.installed():
        ranks.hold()
        course.run(stages)
    result = _result(context, learner, reporter, setup.device)
    ranks.check_same(result["weights_sha256"])
    _finish(context, setup, reporter, result)
    ranks.part()
    if context.notes:
        result["notes"] = context.notes
    return result


def _show(context: Context, learner: Any, writer: SummaryWriter) -> None:
    outputs.show_batch(context, learner.dls, writer)
    print_summary(context, learner)
    if context.experiment.tensorboard.graph:
        tensorboard.write_graph(context, writer, learner)


def _finish(context: Context, made: _SetUp, reporter: Reporter, result: dict[str, Any]) -> None:
    """Write plots and models, evaluate and interpret; note outputs that fail, as the training itself is done."""
    learner, loop, ranks, finish = made.learner, made.loop, made.ranks, context.experiment.finish
    if context.rank == 0:
        if finish.plots:
            with noted(context, _("{name} could not be made", name="learning_curves.png")):
                plots.learning_curves(reporter.rows, context.run.plots)
        with noted(context, _("{name} could not be made", name="model.pt")):
            outputs.save_models(context, learner, result)
    if not finish.evaluate:
        return
    evaluated = None
    with loop.installed(), noted(context, _("{name} could not be made", name="predictions.npy"), but=RankLost):
        evaluated = outputs.evaluate(context, learner, result)
    if context.rank == 0 and evaluated is not None:
        with ranks.alone(), loop.installed(), noted(context, _("the pictures of the predictions could not be made")):
            outputs.interpret(context, learner, evaluated, result, reporter.curves.writer)


def _learner(context: Context, data: Data, ranks: Ranks) -> Any:
    first = context.rank == 0 and not context.run.checkpoints.exists()
    if first:
        # It prints each step of making a batch, and so the one that fails.
        data.summary()
    learner = build_learner(context, data, data.loaders())
    ranks.same_weights(learner)
    return learner


def _signature(context: Context, learner: Any, data: Data, stages: tuple[recipe.Stage, ...]) -> dict[str, Any]:
    """Return what must not change between a checkpoint and its resume."""
    train = context.experiment.train
    return {
        "devices": context.tasks,
        "batch_size": learner.dls.train.bs,
        "seed": train.seed,
        "precision": train.mixed_precision or "float32",
        "examples": len(data.items),
        "names_of_the_examples": data.sha256(),
        "order": fastai_loaders.names(learner.dls),
        "division": sha256_of_split(learner.dls),
        "recipe": recipe.signature(stages),
        "model": fastai_state.signature_of_model(learner.model),
    }


def _result(context: Context, learner: Any, reporter: Reporter, device: Any) -> dict[str, Any]:
    import fastai
    import torch

    return {
        "metrics": reporter.last_metrics(),
        "seconds_training": round(reporter.seconds, 3),
        "epochs": len(reporter.rows),
        "steps": reporter.steps,
        "weights_sha256": weights_sha256(learner.model),
        "devices": [describe(device)] * context.tasks,
        "tasks": context.tasks,
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "architecture": outputs.architecture(learner),
        "loss": str(learner.loss_func),
        **outputs.vocab(learner),
        "examples": {"train": len(learner.dls.train_ds), "validation": len(learner.dls.valid_ds)},
        "versions": {"fastai": fastai.__version__, "torch": torch.__version__},
        **record(context),
    }


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of the bytes of all weights and buffers, in the order of the state dict."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(bytes_of_tensor(value))
    return digest.hexdigest()
