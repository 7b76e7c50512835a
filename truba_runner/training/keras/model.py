"""Build a Keras job's model and optimizer and compile them as the config says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed, nearest
from truba_runner.log import info
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import accepted, call
from truba_runner.training.keras.batches.preprocessing import Preprocessing, takes_text
from truba_runner.training.keras.compile import adjust, compile_model, over_schedule
from truba_runner.training.keras.labels.named import is_entry, make_class


def build_model(context: Context, jit_compile: bool, preprocessing: Preprocessing | None = None) -> Any:
    """Return the job's model, compiled by the job or from the config's `train`. Call this in the strategy's scope.

    `jit_compile` applies to the training step alone. Preprocessing inside the network is joined to the model.

    Raises:
        truba_runner.errors.Failed: `build_model` returned no model, or the config does not say how to compile it.
    """
    import keras

    train = context.experiment.train
    with _hyperparameters(context) as given:
        model = call(context.job, "build_model", "job.options", _model_options(context), **given)
    if not isinstance(model, keras.Model):
        raise Failed(
            "build_model in {file} returned a {kind}, not a keras.Model.",
            file=context.job.__file__,
            kind=type(model).__name__,
        )
    if preprocessing and preprocessing.inside:
        model, jit_compile = _joined(context, model, preprocessing, jit_compile)
    if model.compiled:
        adjust(model, train)
    else:
        compile_model(context, model, lambda: _scaling_losses(make_optimizer(train, context), train))
    # XLA compiles evaluation once per batch size, which takes longer than the speed-up saves.
    model.jit_compile = False
    model.make_test_function()
    model.jit_compile = jit_compile
    return model


@contextmanager
def _hyperparameters(context: Context) -> Iterator[dict[str, Any]]:
    """Yield `hp` with the values of `job.hyperparameters` if build_model takes it; record what build_model asks for.

    Raises:
        truba_runner.errors.Failed: the config sets a hyperparameter that build_model does not ask for.
    """
    build, values = getattr(context.job, "build_model", None), context.experiment.job.hyperparameters
    if build is None or "hp" not in inspect.signature(build).parameters:
        if values:
            raise Failed(
                "job.hyperparameters is set, but build_model in {file} takes no hp.", file=context.job.__file__
            )
        yield {}
        return
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    yield {"hp": hp}
    asked = {one.name for one in hp.space}
    if unknown := [name for name in values if name not in asked]:
        raise Failed(
            "job.hyperparameters.{name}: build_model in {file} asks hp for no such value. {nearest}",
            name=unknown[0],
            file=context.job.__file__,
            nearest=nearest(unknown[0], asked),
        )
    context.hyperparameters.update(hp.get_config())


def _model_options(context: Context) -> dict[str, Any]:
    """Return `job.options` without those only `build_preprocessing` takes; unknown ones are refused later."""
    build, preprocess = (getattr(context.job, name, None) for name in ("build_model", "build_preprocessing"))
    options = context.experiment.job.options
    others = set(accepted(preprocess, options)) - set(accepted(build, options))
    return {name: value for name, value in options.items() if name not in others}


def _joined(context: Context, model: Any, preprocessing: Preprocessing, jit_compile: bool) -> tuple[Any, bool]:
    if model.compiled:
        raise Failed(
            "data.preprocessing=model puts a layer before the model, but build_model in {file} compiled it already. "
            "Leave compile out there and set train.loss, or set data.preprocessing=async.",
            file=context.job.__file__,
        )
    text = takes_text(preprocessing.signature)
    if jit_compile and text:
        info("train.jit_compile is off: XLA cannot compile a network that takes text")
    return preprocessing.joined(model), jit_compile and not text


def _scaling_losses(optimizer: Any, train: Train) -> Any:
    """Add loss scaling for mixed_float16, whose small gradients would otherwise be 0."""
    # compile() would do the same, but then `keras.models.load_model` does not find the saved optimizer.
    import keras

    if train.mixed_precision != "mixed_float16" or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def make_optimizer(train: Train, context: Context | None = None) -> Any:
    """Make the optimizer of `train.optimizer`, with `train.learning_rate` if that is set.

    Raises:
        truba_runner.errors.Failed: there is no such optimizer, or it does not take these settings.
    """
    import keras

    setting = train.optimizer
    entry: Any = {"class_name": setting} if isinstance(setting, str) else setting
    if train.learning_rate is not None and is_entry(entry):
        settings = dict(entry.get("config") or {})
        if is_entry(settings.get("learning_rate")):
            raise over_schedule("train.learning_rate", train.learning_rate)
        entry = {**entry, "config": {**settings, "learning_rate": train.learning_rate}}
    optimizer = make_class(context, "train.optimizer", entry, keras.optimizers)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise Failed(
            "train.optimizer: {given} made a {kind}, which is not a keras.optimizers.Optimizer.",
            given=setting,
            kind=type(optimizer).__name__,
        )
    return optimizer
