"""Make the callbacks of the config, and the one that keeps models."""

from __future__ import annotations

from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import entry_of
from truba_runner.training.keras import callback_rules
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.kept_models import kept_models
from truba_runner.training.keras.labels.named import make_class
from truba_runner.training.keras.saving import Saving


def extra_callbacks(context: Context, model: Any, plan: Plan, saving: Saving, resumes: bool) -> list[Any]:
    """Return the callbacks of `train.callbacks`, then the one that keeps models; `resumes`: the run resumes.

    Raises:
        truba_runner.errors.Failed: a callback cannot be made, or cannot work here.
    """
    experiment = context.experiment
    made = [make_callback(context, index, given) for index, given in enumerate(experiment.train.callbacks)]
    callback_rules.check(context, model, plan, made, saving.whole_model)
    callback_rules.keep_rows(made, resumes)
    if context.rank == 0 and (experiment.checkpoint.model_each_epoch or experiment.checkpoint.best_model):
        made.append(kept_models(context, saving))
    return made


# -- from the config -------------------------------------------------------------------------------------------


def make_callback(context: Context, index: int, given: Any) -> Any:
    """Make a Keras callback of `NAME` or `{class_name: NAME, config: {…}}`; NAME with a dot is an import path.

    Raises:
        truba_runner.errors.Failed: there is no such callback, or it does not take these arguments.
    """
    import keras

    where = f"train.callbacks[{index}]"
    name, _settings = entry_of(where, given, "EarlyStopping")
    callback = make_class(context, where, given, keras.callbacks)
    if not isinstance(callback, keras.callbacks.Callback):
        raise Failed(
            "{where}: {name} made a {kind}, which is not a keras.callbacks.Callback.",
            where=where,
            name=name,
            kind=type(callback).__name__,
        )
    return callback
