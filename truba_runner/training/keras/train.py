"""Train a job's Keras model: pick devices, fit, evaluate, predict and write the result."""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from truba_runner.config import lr_find
from truba_runner.language import _
from truba_runner.training import plots
from truba_runner.training.backend import Context
from truba_runner.training.found_rate import found_rate, record
from truba_runner.training.keras import framework, tensorboard
from truba_runner.training.keras.batches.epochs import around
from truba_runner.training.keras.batches.fit_check import check_fit
from truba_runner.training.keras.batches.inputs import known_examples, make_plans
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.batches.preprocessing import Preprocessing, add_preprocessing
from truba_runner.training.keras.batches.short import shortened
from truba_runner.training.keras.batches.splits import load_splits
from truba_runner.training.keras.batches.streams import run_out_safely
from truba_runner.training.keras.callbacks import extra_callbacks
from truba_runner.training.keras.devices import replicas
from truba_runner.training.keras.devices.devices import can_compile, describe, draw_apart, pick_devices
from truba_runner.training.keras.devices.devices import convolve as convolve  # A part of the backend's interface.
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.devices.team import Team
from truba_runner.training.keras.labels.class_weights import add_class_weights
from truba_runner.training.keras.loop.build import build, is_built_first
from truba_runner.training.keras.loop.callback_list import callback_list
from truba_runner.training.keras.loop.encoding import decode
from truba_runner.training.keras.loop.reporter import Reporter
from truba_runner.training.keras.loop.resume import Resume
from truba_runner.training.keras.lr_finder import find_rates, set_rate
from truba_runner.training.keras.model import build_model
from truba_runner.training.keras.outputs import can_evaluate, evaluate_and_predict
from truba_runner.training.keras.precision import precision, scale_learning_rate
from truba_runner.training.keras.saving import Saving
from truba_runner.training.notes import note, noted
from truba_runner.training.summaries import curves
from truba_runner.training.summaries.curves import Curves

# Read when TensorFlow and Keras are first imported, which is before any function here runs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
_OTHER_BACKEND = framework.choose(os.environ)

IMPORTS = (__name__, "tensorflow", "keras")


def train(context: Context) -> dict[str, Any]:
    """Train, evaluate, predict and save; `truba_runner.training.backend.load` describes the result.

    Raises:
        truba_runner.errors.Failed: the job's code or the config is at fault, or the node's GPUs cannot be used.
    """
    devices = _devices(context)
    with curves.opened(context, tensorboard.peak_bytes(devices), tensorboard.StepProfiler()) as run_curves:
        return _train(context, devices, run_curves)


def find(context: Context) -> dict[str, Any]:
    """Run only the learning-rate finder; `truba_runner.training.backend.load` describes the result.

    Raises:
        truba_runner.errors.Failed: as `train`.
    """
    setup = _set_up(context, _devices(context))
    started = time.perf_counter()
    suggested = find_rates(
        context, setup.model, setup.plans["train"], setup.nodes, setup.splits, lr_find.stage_of(context.experiment)
    )
    setup.nodes.part()
    seconds = round(time.perf_counter() - started, 3)
    return {"suggestions": suggested, "seconds": seconds, "devices": [describe(device) for device in setup.devices]}


def read_state(file: IO[bytes]) -> dict[str, Any]:
    """Read a checkpoint with each rank's own part; `truba_runner.training.backend.reader` describes the result."""
    state: dict[str, Any] = decode(file)
    return {**state, "others": [decode(io.BytesIO(part.tobytes())) for part in state.get("others", [])]}


# -- setting up ------------------------------------------------------------------------------------------------


def _devices(context: Context) -> list[str]:
    framework.check(context, _OTHER_BACKEND)
    import tensorflow

    if context.experiment.train.deterministic:
        # Before any computation: kernels are chosen at their first use.
        tensorflow.config.experimental.enable_op_determinism()
    return pick_devices(context.experiment.resources.gpus)


@dataclass(frozen=True)
class _SetUp:
    """A model that can be trained, with its devices and data."""

    devices: list[str]
    nodes: Nodes
    splits: dict[str, Any]
    plans: dict[str, Plan]
    preprocessing: Preprocessing | None
    model: Any


def _set_up(context: Context, devices: list[str]) -> _SetUp:
    import keras

    experiment = context.experiment
    team = Team(context, devices) if context.tasks > 1 else None
    nodes = team or Nodes(context, devices)
    count = nodes.devices
    keras.utils.set_random_seed(experiment.train.seed)
    splits = load_splits(context)
    if context.most_steps:
        splits = shortened(splits, context.most_steps, experiment.train, count)
    plans = make_plans(context, splits, count, team)
    preprocessing = add_preprocessing(context, splits, plans, count)
    with nodes.strategy.scope(), precision(experiment.train.mixed_precision):
        model = build_model(context, can_compile(experiment.train, count), preprocessing)
    check_fit(model, plans["train"])
    add_class_weights(context, model, splits, plans["train"])
    nodes.adjust(model)
    replicas.check(model, count)
    draw_apart(model, count, nodes.first_device)
    scale_learning_rate(model, experiment.train, count)
    if is_built_first(model, count):
        build(context, model, plans["train"], nodes)
    run_out_safely(model, plans["train"])
    if context.rank == 0:
        with noted(context, _("there is no summary of the network")):
            model.summary(print_fn=lambda text: print(text, flush=True), expand_nested=True)
    return _SetUp(devices, nodes, splits, plans, preprocessing, model)


# -- training --------------------------------------------------------------------------------------------------


def _train(context: Context, devices: list[str], run_curves: Curves) -> dict[str, Any]:
    setup = _set_up(context, devices)
    model, plans, nodes, preprocessing = setup.model, setup.plans, setup.nodes, setup.preprocessing
    experiment, train_plan = context.experiment, setup.plans["train"]
    look = partial(find_rates, context, model, train_plan, nodes, setup.splits)
    if (rate := found_rate(context, look, nodes.from_rank_0)) is not None:
        set_rate(model, rate)
    reporter = Reporter(context, model, train_plan, run_curves)
    resume = Resume(context, model, train_plan, reporter, nodes, setup.splits)
    saving = Saving(context, model, preprocessing)
    if resume.trained:
        resume.restore()
    else:
        if experiment.tensorboard.graph and not resume.resumes:
            tensorboard.write_graph(context, run_curves.writer, model)
        extra = extra_callbacks(context, model, train_plan, saving, resume.resumes)
        _fit(context, model, plans, reporter, resume, extra)
    resume.is_over()
    result = _result(context, setup, reporter)
    if context.rank == 0 and experiment.finish.plots:
        plots.learning_curves(reporter.rows, context.run.plots)
    if context.rank == 0 and experiment.checkpoint.save_model:
        result["model"] = saving.save(context.run.path, "model")
    if nodes.together:
        predictions = _finish_as_team(context, nodes, model, setup.splits, preprocessing, resume, result)
    else:
        predictions = evaluate_and_predict(context, model, plans, result, resume)
    if context.rank == 0 and predictions is not None:
        split = result["predicted"]
        with noted(context, _("there is no confusion matrix")):
            tensorboard.confusion_matrix(
                context, run_curves.writer, split, setup.splits[split], predictions, result["epochs"]
            )
    if context.notes:
        result["notes"] = context.notes
    return result


def _result(context: Context, made: _SetUp, reporter: Reporter) -> dict[str, Any]:
    """Return what the result holds before evaluation; note an optimizer that took no step."""
    import keras
    import tensorflow

    model, rate = made.model, context.experiment.train.learning_rate
    counts = _steps(reporter, model)
    if rate is not None and not counts.get("optimizer_steps", counts["steps"]):
        note(
            context,
            "train.learning_rate={rate} changed nothing: the optimizer that compile() knows took no step. Set the "
            "rates of the others in build_model.",
            rate=rate,
        )
    result = {
        "metrics": reporter.last_metrics(),
        "seconds_training": round(reporter.seconds, 3),
        "epochs": len(reporter.rows),
        **counts,
        "weights_sha256": weights_sha256(model),
        "devices": [describe(device) for device in made.devices],
        "parameters": parameters(model),
        "examples": known_examples(made.splits),
        "versions": {"keras": keras.__version__, "tensorflow": tensorflow.__version__},
        **record(context),
    }
    if context.hyperparameters:
        result["hyperparameters"] = context.hyperparameters
    return result


def _fit(
    context: Context, model: Any, plans: dict[str, Plan], reporter: Reporter, resume: Resume, extra: list[Any]
) -> None:
    epochs = context.experiment.train.epochs
    plan = plans["train"]
    first, last = around(model, plans)
    callbacks = [*first, reporter.callback(), *extra, *last]
    resume.own_callbacks(extra)
    model.fit(
        plan.for_fit,
        epochs=epochs,
        steps_per_epoch=plan.steps_per_epoch,
        initial_epoch=resume.initial_epoch,
        validation_data=_validation(context, model, plans),
        callbacks=callback_list(resume, plan, callbacks, model, epochs=epochs, steps=plan.steps or None, verbose=2),
        shuffle=False,
        verbose=0,
    )


def _validation(context: Context, model: Any, plans: dict[str, Plan]) -> Any:
    if "validation" not in plans:
        return None
    if not can_evaluate(model):
        note(context, "the network has neither call() nor test_step(): there is no validation")
        return None
    return plans["validation"].dataset


def _steps(reporter: Reporter, model: Any) -> dict[str, int]:
    """Return the number of trained batches, and the optimizer's own count if it differs."""
    import keras

    counts = {"steps": reporter.steps}
    made = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) if model.optimizer else reporter.steps
    return counts if made == reporter.steps else {**counts, "optimizer_steps": made}


# -- what is kept ----------------------------------------------------------------------------------------------


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of the bytes of all weights in Keras' order, non-trainable ones included."""
    return _sha256(model.get_weights())


def _sha256(arrays: Iterable[Any]) -> str:
    import numpy as np

    digest = hashlib.sha256()
    for weights in arrays:
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def parameters(model: Any) -> int:
    """Return the number of values in all weights; Keras itself counts them only after a model was called."""
    return sum(math.prod(weight.shape) for weight in model.weights)


def _finish_as_team(
    context: Context,
    nodes: Nodes,
    model: Any,
    splits: dict[str, Any],
    preprocessing: Preprocessing | None,
    resume: Resume,
    result: dict[str, Any],
) -> Any:
    """Let rank 0 evaluate and predict as on one device, with a copy of the model that is not mirrored."""
    # Weights that are not trained, as BatchNormalization's statistics, differ between devices in Keras.
    nodes.check_same(_sha256(weight.numpy() for weight in model.trainable_weights))
    result["tasks"] = nodes.tasks
    predictions = None
    if context.rank == 0:
        held_out = make_plans(context, {name: split for name, split in splits.items() if name != "train"}, devices=1)
        if preprocessing and not preprocessing.inside:
            for plan in held_out.values():
                plan.then(preprocessing.ahead)
        with noted(context, _("the network could not be evaluated on one device")):
            alone = copy_of(context, model, preprocessing)
            predictions = evaluate_and_predict(context, alone, held_out, result, resume)
    nodes.part()
    return predictions


def copy_of(context: Context, model: Any, preprocessing: Preprocessing | None) -> Any:
    """Return a copy of the model, built anew outside the strategy's scope, with the same weights."""
    import tensorflow as tf

    with precision(context.experiment.train.mixed_precision):
        copy = build_model(context, jit_compile=False, preprocessing=preprocessing)
    if not copy.built:
        copy.build(tf.nest.map_structure(lambda tensor: tensor.shape, model.input))
    copy.set_weights(model.get_weights())
    return copy
