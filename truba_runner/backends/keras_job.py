"""A Keras job's own code: its functions are called, and its model is compiled, as the config says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from truba_runner.backends import Context
from truba_runner.backends.job_calls import accepted, call
from truba_runner.config import Train
from truba_runner.errors import Failed, nearest
from truba_runner.language import _

if TYPE_CHECKING:
    from truba_runner.backends.keras_preprocessing import Preprocessing


def build_model(context: Context, jit_compile: bool, preprocessing: Preprocessing | None = None) -> Any:
    """The job's model, compiled: by the job itself, else from the config's `train`. Needs the strategy's scope.

    `jit_compile` is for the training step alone. Preprocessing that works in the network is joined to it.

    Raises:
        truba_runner.errors.Failed: it is no model, or the config does not say how to compile it.
    """
    import keras

    train = context.experiment.train
    with _hyperparameters(context) as given:
        model = call(context.job, "build_model", "job.options", _model_options(context), **given)
    if not isinstance(model, keras.Model):
        raise Failed(
            _(
                "build_model in {file} returned a {kind}, not a keras.Model.",
                file=context.job.__file__,
                kind=type(model).__name__,
            )
        )
    if preprocessing and preprocessing.inside:
        model, jit_compile = _joined(context, model, preprocessing, jit_compile)
    if model.compiled:
        _adjust(model, train)
    else:
        _compile(context, model, train)
    # XLA takes longer to compile evaluation, once for each size of batch, than evaluation then gains by it.
    model.jit_compile = False
    model.make_test_function()
    model.jit_compile = jit_compile
    return model


@contextmanager
def _hyperparameters(context: Context) -> Iterator[dict[str, Any]]:
    """`hp` for a build_model that takes it, with the values of `job.hyperparameters`; what it asks for is noted.

    Raises:
        truba_runner.errors.Failed: there is a value that it did not ask for.
    """
    build, values = getattr(context.job, "build_model", None), context.experiment.job.hyperparameters
    if build is None or "hp" not in inspect.signature(build).parameters:
        if values:
            raise Failed(
                _("job.hyperparameters is set, but build_model in {file} takes no hp.", file=context.job.__file__)
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
            _(
                "job.hyperparameters.{name}: build_model in {file} asks hp for no such value. {nearest}",
                name=unknown[0],
                file=context.job.__file__,
                nearest=nearest(unknown[0], asked),
            )
        )
    context.hyperparameters.update(hp.get_config())


def _model_options(context: Context) -> dict[str, Any]:
    """`job.options` without those that only `build_preprocessing` takes; what neither takes is refused later."""
    build, preprocess = (getattr(context.job, name, None) for name in ("build_model", "build_preprocessing"))
    options = context.experiment.job.options
    others = set(accepted(preprocess, options)) - set(accepted(build, options))
    return {name: value for name, value in options.items() if name not in others}


def _joined(context: Context, model: Any, preprocessing: Preprocessing, jit_compile: bool) -> tuple[Any, bool]:
    from truba_runner.backends.keras_preprocessing import takes_text

    if model.compiled:
        raise Failed(
            _(
                "data.preprocessing=model puts a layer before the model, but build_model in {file} compiled it "
                "already. Leave compile out there and set train.loss, or set data.preprocessing=async.",
                file=context.job.__file__,
            )
        )
    text = takes_text(preprocessing.signature)
    if jit_compile and text:
        print(_("train.jit_compile is off: XLA cannot compile a network that takes text"), flush=True)
    return preprocessing.joined(model), jit_compile and not text


def _compile(context: Context, model: Any, train: Train) -> None:
    import keras

    if train.loss is None:
        raise Failed(
            _(
                "No loss to train with: build_model in {file} returned a model that is not compiled, and train.loss "
                "is not set. Set it, for example train.loss=sparse_categorical_crossentropy.",
                file=context.job.__file__,
            )
        )
    model.compile(
        optimizer=_scaling_losses(make_optimizer(train), train),
        loss=_loss_or_metric("train.loss", keras.losses, train.loss),
        metrics=[_loss_or_metric("train.metrics", keras.metrics, item) for item in train.metrics],
        steps_per_execution=train.steps_per_execution,
    )


def _scaling_losses(optimizer: Any, train: Train) -> Any:
    """For mixed_float16, whose small gradients would else be 0.

    compile() would do the same, but then `keras.models.load_model` does not find the optimizer that was saved.
    """
    import keras

    if train.mixed_precision != "mixed_float16" or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def _adjust(model: Any, train: Train) -> None:
    """Of a model that the job compiled itself, only what the job cannot know is set: how it runs, and a swept rate."""
    print(_("build_model compiled the model: train.optimizer, train.loss and train.metrics are not used"), flush=True)
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


def _loss_or_metric(where: str, module: Any, value: Any) -> Any:
    """An object for `{class_name: …}`; a name as it is, once Keras is known to have it."""
    if _is_object(value):
        return _make(where, module, value)
    # compile() picks the accuracy that fits the labels.
    if isinstance(value, str) and value.lower() not in {"accuracy", "acc"}:
        try:
            module.get(value)
        except ValueError as error:
            raise Failed(
                _(
                    "{where}: Keras has no {value!r}. {nearest}",
                    where=where,
                    value=value,
                    nearest=nearest(value, _names(module)),
                )
            ) from error
    return value


def _names(module: Any) -> set[str]:
    """What a loss or a metric may be called: classes in both spellings, and functions."""
    public = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    snakes = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in public}
    return {name for name in public | snakes if _has(module, name)}


def _has(module: Any, name: str) -> bool:
    try:
        module.get(name)
    # What needs arguments of its own is there all the same.
    except TypeError:
        return True
    except ValueError:
        return False
    return True


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_name" in value


def _make(where: str, module: Any, value: Mapping[str, Any]) -> Any:
    """What Keras builds of `{class_name: …, config: {…}}`; `module` is keras.optimizers, losses or metrics."""
    get: Callable[[Any], Any] = module.get
    class_name = str(value["class_name"])
    valid = {name for name in dir(module) if inspect.isclass(getattr(module, name))}
    if class_name.lower() not in {name.lower() for name in valid}:
        raise Failed(
            _(
                "{where}: Keras has no {class_name!r}. {nearest}",
                where=where,
                class_name=class_name,
                nearest=nearest(class_name, valid),
            )
        )
    settings = dict(value.get("config") or {})
    try:
        return get({"class_name": class_name, "config": settings})
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Failed(
            _(
                "{where}: Keras cannot make {class_name} with {settings}: {reason}",
                where=where,
                class_name=class_name,
                settings=settings,
                reason=reason,
            )
        ) from error
