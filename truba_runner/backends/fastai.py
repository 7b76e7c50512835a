"""Trains a job's fastai learner through the stages of a recipe, and keeps what comes of it."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from typing import Any

from truba_runner import plots, recipe
from truba_runner.backends import Context, architectures, curves, fastai_board, fastai_outputs, fastai_state
from truba_runner.backends.fastai_devices import compute_the_same_each_time, describe, pick_device
from truba_runner.backends.fastai_job import Data, build_learner, print_summary
from truba_runner.backends.fastai_loop import Loop
from truba_runner.backends.fastai_ranks import Ranks
from truba_runner.backends.fastai_reporter import Reporter
from truba_runner.backends.fastai_resume import Resume
from truba_runner.backends.fastai_stages import Course
from truba_runner.backends.fastai_streams import end_readers
from truba_runner.errors import Failed

# Read when matplotlib is first imported: there is no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
# How torch begins to say so.
_ONE_EXAMPLE = "Expected more than 1 value per channel when training"

IMPORTS = (__name__, "fastai.vision.all")


def train(context: Context) -> dict[str, Any]:
    """Trains, evaluates, predicts and saves; the result is described at `truba_runner.backends.load`.

    Raises:
        truba_runner.errors.Failed: the job's code or the config is at fault, or the GPU cannot be used.
    """
    import torch

    try:
        architectures.chosen(context)  # What is wrong with it shows before anything is read.
        with ExitStack() as at_the_end:
            return _train(context, at_the_end)
    except torch.OutOfMemoryError as error:
        train = context.experiment.train
        raise Failed(
            f"The GPU is out of memory ({str(error).splitlines()[0]}). Take smaller batches with train.batch_size (now "
            f"{train.batch_size or 64}), half precision with train.mixed_precision=mixed_float16 (now "
            f"{train.mixed_precision or 'float32'}), smaller images, or a network that is less deep."
        ) from error
    except ValueError as error:
        if _ONE_EXAMPLE not in str(error):
            raise
        raise Failed(
            "BatchNorm learns from batches of two examples or more, and this one has a single one. Set "
            "train.batch_size to 2 or more; where it is an epoch's last batch, to a size that leaves none over."
        ) from error
    finally:
        end_readers()


def _train(context: Context, at_the_end: ExitStack) -> dict[str, Any]:
    experiment = context.experiment
    device = pick_device(experiment.resources.gpus, int(os.environ.get("SLURM_LOCALID", "0")))
    told = at_the_end.enter_context(
        curves.opened(context, fastai_board.peak_bytes(device), fastai_board.StepProfiler())
    )
    # On CPUs it costs next to nothing.
    if experiment.train.deterministic or device.type == "cpu":
        compute_the_same_each_time()
    ranks = Ranks(context, device)
    stages = recipe.read(experiment.train.recipe, experiment.train.epochs, experiment.train.learning_rate)
    data = Data(context, device, at_the_end)
    learner = _learner(context, data, ranks)
    reporter = Reporter(context, learner, recipe.epochs_of(stages), told)
    resume = Resume(context, learner, reporter, ranks, _signature(context, learner, data, stages))
    loop = Loop(learner, experiment.train.seed, ranks)
    course = Course(context, learner, data, loop, reporter, resume)
    course.check(stages)
    if resume.stage < 0 and context.rank == 0:
        fastai_outputs.show_batch(context, learner.dls, told.board)
        print_summary(learner)
        if experiment.tensorboard.graph:
            fastai_board.write_graph(told.board, learner)
    with loop.installed():
        context.interruption.hold()
        course.run(stages)
    result = _result(context, learner, reporter, device)
    ranks.check_same(result["weights_sha256"])
    if context.rank == 0:
        if experiment.finish.plots:
            plots.learning_curves(reporter.rows, context.run.plots)
        fastai_outputs.save_models(context, learner, result)
    if experiment.finish.evaluate:
        with loop.installed():
            evaluated = fastai_outputs.evaluate(context, learner, result)
        if context.rank == 0:
            with ranks.alone(), loop.installed():
                fastai_outputs.interpret(context, learner, evaluated, result, told.board)
    ranks.part()
    return result


def _learner(context: Context, data: Data, ranks: Ranks) -> Any:
    first = context.rank == 0 and not context.run.checkpoints.exists()
    if first:
        # Tells of each step, so of the one that fails.
        data.summary()
    learner = build_learner(context, data, data.loaders())
    ranks.same_model(learner.model)
    return learner


def _signature(context: Context, learner: Any, data: Data, stages: tuple[recipe.Stage, ...]) -> dict[str, Any]:
    """What has to be the same for a checkpoint to mean the same."""
    train = context.experiment.train
    return {
        "devices": context.tasks,
        "batch_size": learner.dls.train.bs,
        "seed": train.seed,
        "precision": train.mixed_precision or "float32",
        "examples": len(data.items),
        "names_of_the_examples": data.sha256(),
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
        "architecture": fastai_outputs.architecture(learner),
        "loss": str(learner.loss_func),
        **fastai_outputs.vocab(learner),
        "examples": {"train": len(learner.dls.train_ds), "validation": len(learner.dls.valid_ds)},
        "versions": {"fastai": fastai.__version__, "torch": torch.__version__},
    }


def weights_sha256(model: Any) -> str:
    """SHA-256 over the bytes of all weights and buffers in the order of the state dict."""
    import torch

    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
