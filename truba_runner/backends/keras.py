"""Trains a job's Keras model: devices, fit, evaluation, prediction, and what is kept of them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import Any

from truba_runner import plots
from truba_runner.backends import Context
from truba_runner.backends.keras_callbacks import extra_callbacks, step_counter
from truba_runner.backends.keras_data import DataPlan, load_splits
from truba_runner.backends.keras_devices import can_compile, describe, make_strategy, pick_devices
from truba_runner.backends.keras_input import known_examples, make_plans
from truba_runner.backends.keras_job import build_model
from truba_runner.backends.keras_preprocessing import Preprocessing, add_preprocessing
from truba_runner.backends.keras_settings import precision, scale_learning_rate, storable
from truba_runner.backends.keras_streams import run_out_safely

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
    keras.utils.set_random_seed(experiment.train.seed)
    splits = load_splits(context)
    plans = make_plans(context, splits, len(devices))
    preprocessing = add_preprocessing(context, splits, plans, len(devices))
    with make_strategy(devices).scope(), precision(experiment.train.mixed_precision):
        model = build_model(context, can_compile(experiment.train.jit_compile, len(devices)), preprocessing)
    scale_learning_rate(model, experiment.train, len(devices))
    run_out_safely(model, plans["train"])
    model.summary(print_fn=lambda text: print(text, flush=True), expand_nested=True)

    reporter = Reporter(context, model, plans["train"])
    started = time.perf_counter()
    _fit(context, model, plans, reporter, extra_callbacks(context, preprocessing))
    result = {
        "metrics": reporter.last_metrics(),
        "seconds_training": round(time.perf_counter() - started, 3),
        "epochs": len(reporter.rows),
        "steps": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "weights_sha256": weights_sha256(model),
        "devices": [describe(device) for device in devices],
        "parameters": model.count_params(),
        "examples": known_examples(splits),
        "versions": {"keras": keras.__version__, "tensorflow": tensorflow.__version__},
    }
    plots.learning_curves(reporter.rows, context.run.plots)
    _save_model(context, model, result, preprocessing)
    _evaluate_and_predict(context, model, plans, result)
    return result


# -- training --------------------------------------------------------------------------------------------------


def _fit(context: Context, model: Any, plans: dict[str, Any], reporter: Reporter, extra: list[Any]) -> None:
    callbacks = [*step_counter(context, plans["train"]), reporter.callback(), *extra]
    if context.experiment.tensorboard.enabled:
        callbacks.append(_tensorboard(context))
    model.fit(
        plans["train"].dataset,
        epochs=context.experiment.train.epochs,
        validation_data=plans["validation"].dataset if "validation" in plans else None,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def _tensorboard(context: Context) -> Any:
    import keras

    # The graph would say again what summary() does, and is the dearest part.
    callback = keras.callbacks.TensorBoard(str(context.run.tensorboard), write_graph=False)
    # Keras makes a summary of each batch even where it writes those of epochs alone, for 0.1 ms and more.
    callback.on_train_batch_end = lambda batch, logs=None: None
    return callback


class Reporter:
    """Sets each epoch's order, and tells of steps and epochs: in `progress.json`, `history.csv` and the log."""

    def __init__(self, context: Context, model: Any, plan: DataPlan) -> None:
        """`rows` are those of `history.csv`, one a finished epoch."""
        self._context = context
        self._model = model
        self._plan = plan
        self._epoch = 0
        self._epoch_started = 0.0
        self.rows: list[dict[str, Any]] = []

    def callback(self) -> Any:
        """Itself, in Keras' form."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_train_begin=self._train_begin,
            on_epoch_begin=self._epoch_begin,
            on_train_batch_end=self._steps_end,
            on_epoch_end=self._epoch_end,
        )

    def last_metrics(self) -> dict[str, float]:
        """The last epoch's, by name."""
        own = ("epoch", "learning_rate", "seconds")
        return {name: value for name, value in self.rows[-1].items() if name not in own} if self.rows else {}

    def _train_begin(self, logs: dict[str, float]) -> None:
        epochs = self._context.experiment.train.epochs
        self._context.progress.update(epochs=epochs, steps_per_epoch=self._plan.steps)

    def _epoch_begin(self, epoch: int, logs: dict[str, float]) -> None:
        self._epoch = epoch
        self._epoch_started = time.perf_counter()
        self._plan.begin(epoch)

    def _steps_end(self, batch: int, logs: dict[str, float]) -> None:
        # Keras counts an epoch's last execution as if it had all of its steps.
        self._context.progress.step(self._epoch + 1, min(batch + 1, self._plan.steps or batch + 1), logs)

    def _epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        import keras

        metrics = {name: float(logs[name]) for name in sorted(logs, key=_loss_first)}
        self.rows.append(
            {
                "epoch": epoch + 1,
                **metrics,
                "learning_rate": float(keras.ops.convert_to_numpy(self._model.optimizer.learning_rate)),
                "seconds": round(time.perf_counter() - self._epoch_started, 3),
            }
        )
        self._write_history()
        self._context.progress.epoch_end(epoch + 1, self._plan.steps, metrics)

    def _write_history(self) -> None:
        try:
            self._context.run.write_history(self.rows)
        except OSError as error:
            # The next epoch writes every row again.
            print(f"history.csv could not be written ({error}); training goes on", file=sys.stderr, flush=True)


def _loss_first(name: str) -> tuple[bool, bool]:
    return name.startswith("val_"), not name.endswith("loss")


# -- what is kept ----------------------------------------------------------------------------------------------


def weights_sha256(model: Any) -> str:
    """SHA-256 over the bytes of all weights in Keras' order, those that are not trained included."""
    import numpy as np

    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def _save_model(context: Context, model: Any, result: dict[str, Any], preprocessing: Preprocessing | None) -> None:
    if context.experiment.checkpoint.save_model:
        result["model"] = "model.keras"
        whole = preprocessing.joined(model) if preprocessing and not preprocessing.inside else model
        whole.save(context.run.path / result["model"])


def _evaluate_and_predict(context: Context, model: Any, plans: dict[str, Any], result: dict[str, Any]) -> None:
    """On the held-out split: its metrics, named `test_…`, join the result's; its predictions go to a file."""
    import numpy as np

    held_out = plans.get("test", plans.get("validation"))
    if held_out is None:
        return
    metrics = model.evaluate(held_out.dataset, verbose=0, return_dict=True)
    result["metrics"].update({f"test_{name}": float(metrics[name]) for name in sorted(metrics, key=_loss_first)})
    # For prediction Keras unrolls all steps of an execution, and would compile for longer than it predicts.
    model.steps_per_execution, model.jit_compile = 1, False
    result["predictions"] = "predictions.npy"
    np.save(context.run.path / result["predictions"], storable(model.predict(held_out.dataset, verbose=0)))
