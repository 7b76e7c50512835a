"""Trains a job's Keras model: devices, fit, evaluation, prediction, and what is kept of them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from truba_runner.backends import Context
from truba_runner.backends.keras_data import DataPlan, count_examples, load_splits
from truba_runner.backends.keras_devices import can_compile, check_batch_size, describe, make_strategy, pick_devices
from truba_runner.backends.keras_hooks import callback_list
from truba_runner.backends.keras_job import build_model, call
from truba_runner.backends.keras_reporter import Reporter, loss_first
from truba_runner.backends.keras_resume import Resume

# Both are read when TensorFlow and Keras are first imported, so no function here could set them in time.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def train(context: Context) -> dict[str, Any]:
    """Trains, evaluates, predicts and saves; the result is described at `truba_runner.backends.load`.

    Raises:
        truba_runner.errors.Failed: the job's code or the config is at fault, or the node's GPUs cannot be used.
    """
    import keras
    import tensorflow

    experiment = context.experiment
    devices = pick_devices(experiment.resources.gpus)
    check_batch_size(experiment.train.batch_size, len(devices))
    keras.utils.set_random_seed(experiment.train.seed)
    splits = load_splits(context)
    plans = _plans(context, splits, len(devices))
    with make_strategy(devices).scope():
        model = build_model(context, jit_compile=can_compile(experiment.train.jit_compile, len(devices)))
    model.summary(print_fn=lambda text: print(text, flush=True))

    reporter = Reporter(context, model, plans["train"])
    resume = Resume(context, model, plans["train"], reporter)
    if resume.trained:
        resume.restore()
    else:
        _fit(context, model, plans, reporter, resume)
    result = {
        "metrics": reporter.last_metrics(),
        "seconds_training": round(reporter.seconds, 3),
        "epochs": len(reporter.rows),
        "steps": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "weights_sha256": weights_sha256(model),
        "devices": [describe(device) for device in devices],
        "parameters": model.count_params(),
        "examples": {name: count_examples(name, split) for name, split in splits.items()},
        "versions": {"keras": keras.__version__, "tensorflow": tensorflow.__version__},
    }
    _save_model(context, model, result)
    _evaluate_and_predict(context, model, plans, result, resume)
    return result


# -- training --------------------------------------------------------------------------------------------------


def _plans(context: Context, splits: dict[str, Any], devices: int) -> dict[str, DataPlan]:
    train = context.experiment.train
    return {
        name: DataPlan(
            split,
            examples=count_examples(name, split),
            batch_size=train.batch_size,
            devices=devices,
            seed=train.seed if name == "train" else None,
        )
        for name, split in splits.items()
    }


def _fit(context: Context, model: Any, plans: dict[str, DataPlan], reporter: Reporter, resume: Resume) -> None:
    epochs = context.experiment.train.epochs
    callbacks = [reporter.callback(), *_callbacks(context)]
    model.fit(
        plans["train"].dataset,
        epochs=epochs,
        initial_epoch=resume.initial_epoch,
        validation_data=plans["validation"].dataset if "validation" in plans else None,
        callbacks=callback_list(resume, callbacks, model, epochs=epochs, steps=plans["train"].steps),
        shuffle=False,
        verbose=0,
    )


def _callbacks(context: Context) -> list[Any]:
    """TensorBoard's where it is wanted, and those that the job's `build_callbacks` returns where it has one."""
    found = [_tensorboard(context)] if context.experiment.tensorboard.enabled else []
    return [*found, *call(context.job, "build_callbacks", "", {})] if hasattr(context.job, "build_callbacks") else found


def _tensorboard(context: Context) -> Any:
    import keras

    # The graph would say again what summary() does, and is the dearest part.
    callback = keras.callbacks.TensorBoard(str(context.run.tensorboard), write_graph=False)
    # Keras makes a summary of each batch even where it writes those of epochs alone, for 0.1 ms and more.
    callback.on_train_batch_end = lambda batch, logs=None: None
    return callback


# -- what is kept ----------------------------------------------------------------------------------------------


def weights_sha256(model: Any) -> str:
    """SHA-256 over the bytes of all weights in Keras' order, those that are not trained included."""
    import numpy as np

    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def _save_model(context: Context, model: Any, result: dict[str, Any]) -> None:
    if context.experiment.checkpoint.save_model:
        result["model"] = "model.keras"
        model.save(context.run.path / result["model"])


def _evaluate_and_predict(
    context: Context, model: Any, plans: dict[str, DataPlan], result: dict[str, Any], resume: Resume
) -> None:
    """On the held-out split: its metrics, named `test_…`, join the result's; its predictions go to a file."""
    import numpy as np

    held_out = plans.get("test", plans.get("validation"))
    if held_out is None:
        return
    with resume.after_training() as callbacks:
        if "evaluation" not in resume.result:
            metrics = model.evaluate(held_out.dataset, verbose=0, return_dict=True, callbacks=callbacks)
            resume.result["evaluation"] = {name: float(metrics[name]) for name in sorted(metrics, key=loss_first)}
        result["metrics"].update({f"test_{name}": value for name, value in resume.result["evaluation"].items()})
        # For prediction Keras unrolls all steps of an execution, and would compile for longer than it predicts.
        model.steps_per_execution, model.jit_compile = 1, False
        predictions = model.predict(held_out.dataset, verbose=0, callbacks=callbacks)
    result["predictions"] = "predictions.npy"
    np.save(context.run.path / result["predictions"], predictions)
