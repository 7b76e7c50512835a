"""Compile a model as the config says, or adjust one that the job compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from truba_runner.config.schema import Train
from truba_runner.errors import Failed, nearest
from truba_runner.log import info
from truba_runner.training.backend import Context
from truba_runner.training.keras.labels.named import is_entry, made

Made = Callable[[str, Any], Any]


def compile_model(context: Context, model: Any, make_optimizer: Callable[[], Any]) -> None:
    """Compile `model` with `train.loss`, `train.metrics` and `train.loss_weights`, each for all outputs or by output.

    Raises:
        truba_runner.errors.Failed: there is no loss, or one of these cannot be made or names an unknown output.
    """
    import keras

    train = context.experiment.train
    if train.loss is None:
        raise Failed(
            "No loss to train with: build_model in {file} returned a model that is not compiled, and train.loss is "
            "not set. Set it, for example train.loss=sparse_categorical_crossentropy.",
            file=context.job.__file__,
        )
    outputs = _outputs(model)
    model.compile(
        optimizer=make_optimizer(),
        loss=_by_output("train.loss", train.loss, outputs, lambda at, item: made(context, at, item, keras.losses)),
        loss_weights=_by_output("train.loss_weights", train.loss_weights, outputs, _number),
        metrics=_by_output(
            "train.metrics", train.metrics or None, outputs, lambda at, item: made(context, at, item, keras.metrics)
        ),
        steps_per_execution=train.steps_per_execution,
    )


def adjust(model: Any, train: Train) -> None:
    """Set on a model that the job compiled only what the job cannot know: steps per execution and a learning rate.

    Raises:
        truba_runner.errors.Failed: the config has a learning rate, but the optimizer follows a schedule.
    """
    info(
        "build_model compiled the model: train.optimizer, train.loss, train.metrics and train.loss_weights are not used"
    )
    model.steps_per_execution = train.steps_per_execution
    if train.learning_rate is None:
        return
    if follows_schedule(model.optimizer):
        raise over_schedule("train.learning_rate", train.learning_rate)
    model.optimizer.learning_rate = train.learning_rate


def follows_schedule(optimizer: Any) -> bool:
    """Whether the rate of an optimizer, or of one inside it, comes from a schedule, so that no rate can be set."""
    import keras

    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    # A schedule or a function; only a variable can be set.
    own = not isinstance(getattr(optimizer, "_learning_rate", None), (keras.Variable, type(None)))
    return own or any(follows_schedule(one) for one in inner if one is not None)


def over_schedule(key: str, value: float | None = None) -> Failed:
    """Return the error for a config key that sets a learning rate, with an optimizer that follows a schedule."""
    return Failed(
        "{received}: this optimizer follows a schedule, and has no single rate to set. Leave the schedule out of "
        "train.optimizer (or of build_model, if that compiles the model), or leave {key} out.",
        received=key if value is None else f"{key}={value}",
        key=key,
    )


def _outputs(model: Any) -> list[str] | None:
    """Return Keras' names of the outputs; None if Keras only learns them in the first step."""
    names = getattr(model, "output_names", None)
    if names is None:
        return None
    structure = getattr(model, "_outputs_struct", None)
    return list(structure) if isinstance(structure, Mapping) else list(names)


def _by_output(where: str, given: Any, outputs: list[str] | None, make_one: Made) -> Any:
    """Make the entries of `given`: by output name, in a list, or one for all outputs."""
    if given is None:
        return None
    if isinstance(given, list):
        return [_by_output(where, item, None, make_one) for item in given]
    if not isinstance(given, Mapping) or is_entry(given):
        return make_one(where, given)
    for name in given:
        if outputs is not None and name not in outputs:
            raise Failed(
                "{where}: the network has no output {name!r}. {nearest}",
                where=where,
                name=name,
                nearest=nearest(str(name), outputs),
            )
    return {name: _by_output(f"{where}.{name}", item, None, make_one) for name, item in given.items()}


def _number(where: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise Failed("{where}={given}: it must be a number.", where=where, given=given)
    return float(given)
