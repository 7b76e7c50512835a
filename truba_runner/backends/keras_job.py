"""A Keras job's own code: its functions are called, and its model is compiled, as the config says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from truba_runner.backends import Context
from truba_runner.config import Train
from truba_runner.errors import Failed, nearest


def call(job: ModuleType, name: str, where: str, options: Mapping[str, Any], /, **given: Any) -> Any:
    """`job.name(**given, **options)`; `where` is the place in the config that the options come from.

    What the function raises itself goes through untouched.

    Raises:
        truba_runner.errors.Failed: the module has no such function, or it does not take these options.
    """
    function = getattr(job, name, None)
    if not callable(function):
        raise Failed(f"{job.__file__} has no function {name}: a Keras job needs build_model and load_data.")
    parameters = inspect.signature(function).parameters.values()
    named = {item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    for option in options:
        if option in given or (option not in named and not takes_any):
            valid = nearest(option, named - set(given))
            raise Failed(f"{where}.{option}: {name} in {job.__file__} takes no such option. {valid}")
    for item in parameters:
        if item.name in named and item.default is item.empty and item.name not in {*given, *options}:
            raise Failed(f"{where}.{item.name} is missing: {name} in {job.__file__} cannot do without it.")
    return function(**given, **options)


def build_model(context: Context, jit_compile: bool) -> Any:
    """The job's model, compiled: by the job itself, else from the config's `train`. Needs the strategy's scope.

    `jit_compile` is for the training step alone.

    Raises:
        truba_runner.errors.Failed: it is no model, or the config does not say how to compile it.
    """
    import keras

    job, train = context.experiment.job, context.experiment.train
    model = call(context.job, "build_model", "job.options", job.options)
    if not isinstance(model, keras.Model):
        raise Failed(f"build_model in {context.job.__file__} returned a {type(model).__name__}, not a keras.Model.")
    if model.compiled:
        _adjust(model, train)
    else:
        _compile(context, model, train)
    # XLA takes longer to compile evaluation, once for each size of batch, than evaluation then gains by it.
    model.jit_compile = False
    model.make_test_function()
    model.jit_compile = jit_compile
    return model


def _compile(context: Context, model: Any, train: Train) -> None:
    import keras

    if train.loss is None:
        raise Failed(
            f"No loss to train with: build_model in {context.job.__file__} returned a model that is not compiled, and "
            "train.loss is not set. Set it, for example train.loss=sparse_categorical_crossentropy."
        )
    model.compile(
        optimizer=make_optimizer(train),
        loss=_make("train.loss", keras.losses, train.loss) if _is_object(train.loss) else train.loss,
        metrics=[_make("train.metrics", keras.metrics, item) if _is_object(item) else item for item in train.metrics],
        steps_per_execution=train.steps_per_execution,
    )


def _adjust(model: Any, train: Train) -> None:
    """Of a model that the job compiled itself, only what the job cannot know is set: how it runs, and a swept rate."""
    print("build_model compiled the model: train.optimizer, train.loss and train.metrics are not used", flush=True)
    model.steps_per_execution = train.steps_per_execution
    if train.learning_rate is not None:
        model.optimizer.learning_rate = train.learning_rate


def make_optimizer(train: Train) -> Any:
    """The optimizer of `train.optimizer`, with `train.learning_rate` where that is set.

    Raises:
        truba_runner.errors.Failed: Keras has no such optimizer, or it does not take these settings.
    """
    import keras

    given = train.optimizer
    optimizer = dict(given) if _is_object(given) else {"class_name": given, "config": {}}
    if train.learning_rate is not None:
        optimizer["config"] = {**optimizer.get("config", {}), "learning_rate": train.learning_rate}
    return _make("train.optimizer", keras.optimizers, optimizer)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_name" in value


def _make(where: str, module: Any, value: Mapping[str, Any]) -> Any:
    """What Keras builds of `{class_name: …, config: {…}}`; `module` is keras.optimizers, losses or metrics."""
    get: Callable[[Any], Any] = module.get
    class_name = str(value["class_name"])
    valid = {name for name in dir(module) if inspect.isclass(getattr(module, name))}
    if class_name.lower() not in {name.lower() for name in valid}:
        raise Failed(f"{where}: Keras has no {class_name!r}. {nearest(class_name, valid)}")
    settings = dict(value.get("config") or {})
    try:
        return get({"class_name": class_name, "config": settings})
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Failed(f"{where}: Keras cannot make {class_name} with {settings}: {reason}") from error
