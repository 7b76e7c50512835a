"""Build a fastai job's own learner and complete it as the config says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed, nearest
from truba_runner.training.backend import Context
from truba_runner.training.fastai.learner import architectures
from truba_runner.training.fastai.learner.batches import key, seed_all
from truba_runner.training.fastai.learner.data import Data
from truba_runner.training.fastai.learner.devices import set_precision
from truba_runner.training.fastai.learner.loaders import check_loaders, transforms_of
from truba_runner.training.job_calls import call, entry_of, imported, make
from truba_runner.training.notes import note


def build_learner(context: Context, data: Data, loaders: Any) -> Any:
    """Return the job's learner with the config's metrics, callbacks, learning rate and precision.

    Raises:
        truba_runner.errors.Failed: `build_learner` made no usable learner, or the config names something unknown.
    """
    # Its modules add methods to Learner, such as fit_one_cycle; a job may import only some of them.
    import fastai.callback.all  # noqa: F401
    from fastai.learner import Learner
    from fastcore.basics import noop

    experiment, train = context.experiment, context.experiment.train
    before = transforms_of(loaders.train)
    seed_all(key(train.seed, "learner"))
    options = {**experiment.job.options, **architectures.chosen(context)}
    learner = call(context.job, "build_learner", "job.options", options, dls=loaders)
    if not isinstance(learner, Learner):
        raise Failed(
            "build_learner in {file} returned a {kind}, not a Learner.",
            file=context.job.__file__,
            kind=type(learner).__name__,
        )
    if not hasattr(learner, "recorder"):
        raise Failed(
            "build_learner in {file} returned a Learner without fastai's Recorder, which records the losses. Leave "
            "default_cbs out.",
            file=context.job.__file__,
        )
    if learner.dls is not loaders:
        check_loaders(context, learner.dls)
    data.added = [item for item in transforms_of(loaders.train) if not any(item is other for other in before)]
    if hasattr(learner, "progress"):
        learner.remove_cb(learner.progress)
    learner.logger = noop  # It prints a row an epoch, as does the run's own reporting.
    learner.path, learner.model_dir = Path(), context.run.models.relative_to(context.run.path)
    if train.learning_rate is not None:
        learner.lr = train.learning_rate
    if train.metrics:
        learner.metrics = [_make(context, "train.metrics", index, item) for index, item in enumerate(train.metrics)]
    learner.add_cbs([_make(context, "train.callbacks", index, item) for index, item in enumerate(train.callbacks)])
    if learner.opt is None:
        learner.create_opt()
    learner.model.to(loaders.device)
    if hasattr(learner.loss_func, "to"):
        learner.loss_func.to(loaders.device)  # A loss may have weights; fastai moves only the model's.
    set_precision(learner, train, loaders.device)
    return learner


def _make(context: Context, key_: str, index: int, given: Any) -> Any:
    """Make a callback or metric of `NAME` or `{class_name: NAME, config: {…}}`; NAME with a dot is an import path."""
    where = f"{key_}[{index}]"
    name, settings = entry_of(where, given, "EarlyStoppingCallback")
    found = imported(context, where, name) if "." in name else _own(context, where, name)
    if key_ == "train.metrics" and inspect.isfunction(found) and not settings and not name[:1].isupper():
        return found  # Such as error_rate; in fastai, those to be made first, as F1Score(), begin with a capital.
    return make(found, where, name, settings)


def _own(context: Context, where: str, name: str) -> Any:
    """Return what a name without a dot means in the job, else in fastai."""
    import fastai.callback.all  # noqa: F401
    import fastai.metrics

    module = fastai.metrics if where.startswith("train.metrics") else fastai.callback.all
    for owner in (context.job, module):
        if callable(getattr(owner, name, None)):
            return getattr(owner, name)
    valid = {item for item in dir(module) if callable(getattr(module, item)) and not item.startswith("_")}
    raise Failed(
        "{where}: neither fastai nor {file} has {name!r}. {nearest} Write names of other modules with their path: "
        "mypackage.mymodule.Name.",
        where=where,
        file=context.job.__file__,
        name=name,
        nearest=nearest(name, valid),
    )


def print_summary(context: Context, learner: Any) -> None:
    """Log the layers, their outputs and numbers of weights; note a network that fastai cannot summarise."""
    from fastai.torch_core import defaults

    callbacks = learner.cbs
    # A batch runs through the network: callbacks of the config and the job must not see it.
    learner.cbs = callbacks.filter(lambda callback: type(callback) in defaults.callbacks)
    try:
        text = str(learner.summary()).partition("Callbacks:")[0]
        print(text + "Callbacks:\n" + "\n".join(f"  - {item}" for item in callbacks.sorted("order")), flush=True)
    except Failed:
        raise  # A damaged image in the batch.
    except Exception as error:
        note(context, "fastai could not summarise the model ({error})", error=error)
    finally:
        learner.cbs = callbacks
