"""Trains a job's Keras model: devices, fit, evaluation, prediction, and what is kept of them."""

from __future__ import annotations

import hashlib
import io
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from truba_runner import lr_find, plots
from truba_runner.backends import Context, curves, keras_board
from truba_runner.backends.curves import Curves
from truba_runner.backends.found_rate import found_rate, record
from truba_runner.backends.keras_callbacks import extra_callbacks, step_counter
from truba_runner.backends.keras_data import load_splits
from truba_runner.backends.keras_devices import can_compile, describe, make_strategy, pick_devices
from truba_runner.backends.keras_find import find_rates, set_rate
from truba_runner.backends.keras_hooks import callback_list
from truba_runner.backends.keras_input import known_examples, make_plans
from truba_runner.backends.keras_job import build_model
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_preprocessing import Preprocessing, add_preprocessing
from truba_runner.backends.keras_reporter import Reporter, loss_first
from truba_runner.backends.keras_resume import Resume
from truba_runner.backends.keras_settings import precision, scale_learning_rate, storable
from truba_runner.backends.keras_short import shortened
from truba_runner.backends.keras_state import decode
from truba_runner.backends.keras_streams import run_out_safely
from truba_runner.full_disk import whole

# Both are read when TensorFlow and Keras are first imported, so no function here could set them in time.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

IMPORTS = (__name__, "tensorflow", "keras")


def train(context: Context) -> dict[str, Any]:
    """Trains, evaluates, predicts and saves; the result is described at `truba_runner.backends.load`.

    Raises:
        truba_runner.errors.Failed: the job's code or the config is at fault, or the node's GPUs cannot be used.
    """
    devices = _devices(context)
    with curves.opened(context, keras_board.peak_bytes(devices), keras_board.StepProfiler()) as told:
        return _train(context, devices, told)


def find(context: Context) -> dict[str, Any]:
    """Runs the learning-rate finder and trains nothing; the result is described at `truba_runner.backends.load`.

    Raises:
        truba_runner.errors.Failed: as `train`.
    """
    made = _set_up(context, _devices(context))
    started = time.perf_counter()
    suggested = find_rates(
        context, made.model, made.plans["train"], made.team, made.splits, lr_find.stage_of(context.experiment)
    )
    if made.team:
        made.team.wait_for_all()
    seconds = round(time.perf_counter() - started, 3)
    return {"suggestions": suggested, "seconds": seconds, "devices": [describe(device) for device in made.devices]}


def read_state(file: IO[bytes]) -> dict[str, Any]:
    """What a checkpoint holds, with each rank's own part, as `truba_runner.backends.reader` says."""
    state: dict[str, Any] = decode(file)
    return {**state, "others": [decode(io.BytesIO(part.tobytes())) for part in state.get("others", [])]}


# -- setting up ------------------------------------------------------------------------------------------------


def _devices(context: Context) -> list[str]:
    import tensorflow

    if context.experiment.train.deterministic:
        # Before anything is computed: kernels are chosen when they are first used.
        tensorflow.config.experimental.enable_op_determinism()
    return pick_devices(context.experiment.resources.gpus)


@dataclass(frozen=True)
class _SetUp:
    """A network that can be trained, and what on."""

    devices: list[str]
    team: Team | None
    splits: dict[str, Any]
    plans: dict[str, Plan]
    preprocessing: Preprocessing | None
    model: Any


def _set_up(context: Context, devices: list[str]) -> _SetUp:
    import keras

    experiment = context.experiment
    team = Team(context, devices) if context.tasks > 1 else None
    count = team.devices if team else len(devices)
    keras.utils.set_random_seed(experiment.train.seed)
    splits = load_splits(context)
    if context.most_steps:
        splits = shortened(splits, context.most_steps, experiment.train, count)
    plans = make_plans(context, splits, count, team)
    preprocessing = add_preprocessing(context, splits, plans, count)
    with (team.strategy if team else make_strategy(devices)).scope(), precision(experiment.train.mixed_precision):
        model = build_model(context, can_compile(experiment.train, count), preprocessing)
    if team:
        team.adjust(model)
    scale_learning_rate(model, experiment.train, count)
    run_out_safely(model, plans["train"])
    if context.rank == 0:
        model.summary(print_fn=lambda text: print(text, flush=True), expand_nested=True)
    return _SetUp(devices, team, splits, plans, preprocessing, model)


# -- training --------------------------------------------------------------------------------------------------


def _train(context: Context, devices: list[str], told: Curves) -> dict[str, Any]:
    import keras
    import tensorflow

    made = _set_up(context, devices)
    model, plans, team, preprocessing = made.model, made.plans, made.team, made.preprocessing
    experiment, train_plan = context.experiment, made.plans["train"]
    look = partial(find_rates, context, model, train_plan, team, made.splits)
    if (rate := found_rate(context, look, team.from_rank_0 if team else list)) is not None:
        set_rate(model, rate)
    reporter = Reporter(context, model, train_plan, told)
    resume = Resume(context, model, train_plan, reporter, team, made.splits)
    if resume.trained:
        resume.restore()
    else:
        if experiment.tensorboard.graph and not resume.goes_on:
            keras_board.write_graph(told.board, model)
        _fit(context, model, plans, reporter, resume, extra_callbacks(context, preprocessing))
    result = {
        "metrics": reporter.last_metrics(),
        "seconds_training": round(reporter.seconds, 3),
        "epochs": len(reporter.rows),
        "steps": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "weights_sha256": weights_sha256(model),
        "devices": [describe(device) for device in devices],
        "parameters": model.count_params(),
        "examples": known_examples(made.splits),
        "versions": {"keras": keras.__version__, "tensorflow": tensorflow.__version__},
        **record(context),
    }
    if context.hyperparameters:
        result["hyperparameters"] = context.hyperparameters
    if context.rank == 0 and experiment.finish.plots:
        plots.learning_curves(reporter.rows, context.run.plots)
    if team:
        predictions = _finish_as_team(context, team, model, made.splits, preprocessing, resume, result)
    else:
        _save_model(context, model, result, preprocessing)
        predictions = _evaluate_and_predict(context, model, plans, result, resume)
    if context.rank == 0 and predictions is not None:
        split = result["predicted"]
        keras_board.confusion_matrix(context, told.board, split, made.splits[split], predictions, result["epochs"])
    return result


def _fit(
    context: Context, model: Any, plans: dict[str, Plan], reporter: Reporter, resume: Resume, extra: list[Any]
) -> None:
    epochs = context.experiment.train.epochs
    callbacks = [*step_counter(context, plans["train"]), reporter.callback(), *extra]
    resume.own_callbacks(extra)
    model.fit(
        plans["train"].dataset,
        epochs=epochs,
        initial_epoch=resume.initial_epoch,
        validation_data=plans["validation"].dataset if "validation" in plans else None,
        callbacks=callback_list(resume, callbacks, model, epochs=epochs, steps=plans["train"].steps),
        shuffle=False,
        verbose=0,
    )


# -- what is kept ----------------------------------------------------------------------------------------------


def weights_sha256(model: Any) -> str:
    """SHA-256 over the bytes of all weights in Keras' order, those that are not trained included."""
    import numpy as np

    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def _finish_as_team(
    context: Context,
    team: Team,
    model: Any,
    splits: dict[str, Any],
    preprocessing: Preprocessing | None,
    resume: Resume,
    result: dict[str, Any],
) -> Any:
    """Rank 0 saves, evaluates and predicts as on one device, with a copy of the model that is not mirrored."""
    team.check_same(model)
    result["tasks"] = team.tasks
    predictions = None
    if context.rank == 0:
        _save_model(context, model, result, preprocessing)
        alone = copy_of(context, model, preprocessing)
        held_out = make_plans(context, {name: split for name, split in splits.items() if name != "train"}, devices=1)
        if preprocessing and not preprocessing.inside:
            for plan in held_out.values():
                plan.then(preprocessing.ahead)
        predictions = _evaluate_and_predict(context, alone, held_out, result, resume)
    team.wait_for_all()
    return predictions


def copy_of(context: Context, model: Any, preprocessing: Preprocessing | None) -> Any:
    """The job's model, built anew outside the strategy's scope, with the same weights."""
    import tensorflow as tf

    with precision(context.experiment.train.mixed_precision):
        copy = build_model(context, jit_compile=False, preprocessing=preprocessing)
    if not copy.built:
        copy.build(tf.nest.map_structure(lambda tensor: tensor.shape, model.input))
    copy.set_weights(model.get_weights())
    return copy


def _save_model(context: Context, model: Any, result: dict[str, Any], preprocessing: Preprocessing | None) -> None:
    if context.experiment.checkpoint.save_model:
        result["model"] = "model.keras"
        joined = preprocessing.joined(model) if preprocessing and not preprocessing.inside else model
        with whole(context.run.path / result["model"]) as beside:
            joined.save(beside)


def _evaluate_and_predict(
    context: Context, model: Any, plans: dict[str, Plan], result: dict[str, Any], resume: Resume
) -> Any:
    """On `test`, else on `validation`: metrics, named after the split, join the result's; predictions go to a file.

    Returns them; None where there is no such split, or the config wants none.
    """
    import numpy as np

    split = "test" if "test" in plans else "validation"
    if split not in plans or not context.experiment.finish.evaluate:
        return None
    held_out, prefix = plans[split], {"test": "test", "validation": "val"}[split]
    with resume.after_training() as callbacks:
        if "evaluation" not in resume.result:
            metrics = model.evaluate(held_out.dataset, verbose=0, return_dict=True, callbacks=callbacks)
            resume.result["evaluation"] = {name: float(metrics[name]) for name in sorted(metrics, key=loss_first)}
        result["metrics"].update({f"{prefix}_{name}": value for name, value in resume.result["evaluation"].items()})
        # For prediction Keras unrolls all steps of an execution, and would compile for longer than it predicts.
        model.steps_per_execution, model.jit_compile = 1, False
        predictions = model.predict(held_out.dataset, verbose=0, callbacks=callbacks)
    result["predictions"], result["predicted"] = "predictions.npy", split
    with whole(context.run.path / result["predictions"]) as beside:
        np.save(beside, storable(predictions))
    return predictions
