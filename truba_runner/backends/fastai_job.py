"""A fastai job's own code: its DataBlock becomes loaders, its learner is completed, as the config says."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from truba_runner.backends import Context, architectures
from truba_runner.backends.fastai_devices import cores, set_precision
from truba_runner.backends.fastai_streams import key, seed_all
from truba_runner.backends.job_calls import accepted, call, entry_of, imported, make
from truba_runner.backends.photographs import Photographs, opened
from truba_runner.errors import Failed, nearest
from truba_runner.language import _
from truba_runner.training_rules import divisible_sizes

_DEFAULT_BATCH_SIZE = 64
_MOST_WORKERS = 16
# Of DataBlock.summary: fastai's own number of examples.
_SUMMARY_EXAMPLES = 4


class Data:
    """A job's examples, and loaders of them in any size."""

    def __init__(self, context: Context, device: Any, at_the_end: ExitStack) -> None:
        """Calls the job's `load_items`.

        Raises:
            truba_runner.errors.Failed: there are none, or the job's functions do not take these options.
        """
        self._context, self._device = context, device
        options, job = context.experiment.data.options, context.job
        loading = self._loading(options)
        self._options = {option: value for option, value in options.items() if option not in loading}
        name, folder = context.experiment.data.name, Path(context.experiment.data.folder)
        self.items = call(job, "load_items", "data.options", loading, name=name, folder=folder)
        self._photographs: Photographs | None = None
        if isinstance(self.items, Path):
            self._photographs = at_the_end.enter_context(opened(context, self.items, self._made))
            self.items = self._photographs.items
        if not len(self.items):
            raise Failed(
                _(
                    "load_items in {file} found nothing for data.name={name} in {folder}.",
                    file=job.__file__,
                    name=name,
                    folder=folder,
                )
            )
        # What `build_learner` adds to a batch's transforms, as vision_learner does: other loaders need it too.
        self.added: list[Any] = []

    def _loading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that `load_items` takes and `data_block` does not."""
        loads, blocks = (getattr(self._context.job, name, None) for name in ("load_items", "data_block"))
        others = accepted(blocks, options)
        return {name: value for name, value in accepted(loads, options).items() if name not in others}

    def block(self, **changes: Any) -> Any:
        """The job's DataBlock; `changes` stand in for options of the config."""
        made = self._made(self.items, **changes)
        return self._photographs.read_by(made) if self._photographs else made

    def _made(self, items: Any, **changes: Any) -> Any:
        from fastai.data.block import DataBlock

        job = self._context.job
        made = call(job, "data_block", "data.options", {**self._options, **changes}, items=items)
        if not isinstance(made, DataBlock):
            raise Failed(
                _(
                    "data_block in {file} returned a {kind}, not a fastai DataBlock.",
                    file=job.__file__,
                    kind=type(made).__name__,
                )
            )
        return made

    def loaders(self, size: int | None = None, batch_size: int | None = None) -> Any:
        """fastai DataLoaders on this process' device; `size` and `batch_size` where they differ from the config's."""
        seed_all(key(self._context.experiment.train.seed, "loaders"))
        loaders = self.block(**({} if size is None else {"size": size})).dataloaders(
            self.items,
            bs=self.batch_size(batch_size),
            num_workers=self._workers(),
            device=self._device,
            pin_memory=self._device.type == "cuda",
        )
        loaders.add_tfms(self.added, "after_batch")
        return loaders

    def summary(self) -> None:
        """fastai's account of how an example and a batch are made, to the log."""
        seed_all(key(self._context.experiment.train.seed, "summary"))
        source = self._photographs.path if self._photographs else self.items
        block = self.block()
        if block.splitter is not None and not len(block.splitter(self.items)[0]):
            raise Failed(
                _(
                    "The training set is empty: the DataBlock's splitter holds out all {count} items.",
                    count=len(self.items),
                )
            )
        block.summary(source, bs=min(_SUMMARY_EXAMPLES, len(self.items)))

    def sha256(self) -> str:
        """Over the items' names: what a checkpoint was trained on."""
        names = [item.name if isinstance(item, Path) else str(item) for item in self.items]
        return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()

    def batch_size(self, given: int | None) -> int:
        """That of each process."""
        train, tasks = self._context.experiment.train, self._context.tasks
        size = given or train.batch_size or _DEFAULT_BATCH_SIZE
        if train.batch_scaling == "per_replica":
            return size
        if size % tasks:
            raise Failed(
                _(
                    "A batch of {size} does not divide among {tasks} processes. Set it to {sizes}, in "
                    "train.batch_size or where the recipe says so.",
                    size=size,
                    tasks=tasks,
                    sizes=divisible_sizes(size, tasks),
                )
            )
        return size // tasks

    def _workers(self) -> int:
        given = self._context.experiment.data.workers
        return min(_MOST_WORKERS, cores() - 1) if given is None else given


def build_learner(context: Context, data: Data, loaders: Any) -> Any:
    """The job's learner, with the config's metrics, callbacks, rate and precision.

    Raises:
        truba_runner.errors.Failed: it is no learner, or the config asks for what is not there.
    """
    from fastai.learner import Learner
    from fastcore.basics import noop

    experiment, train = context.experiment, context.experiment.train
    before = list(loaders.train.after_batch.fs)
    seed_all(key(train.seed, "learner"))
    options = {**experiment.job.options, **architectures.chosen(context)}
    learner = call(context.job, "build_learner", "job.options", options, dls=loaders)
    if not isinstance(learner, Learner):
        raise Failed(
            _(
                "build_learner in {file} returned a {kind}, not a Learner.",
                file=context.job.__file__,
                kind=type(learner).__name__,
            )
        )
    data.added = [item for item in loaders.train.after_batch.fs if not any(item is other for other in before)]
    if hasattr(learner, "progress"):
        learner.remove_cb(learner.progress)
    learner.logger = noop  # It prints a row an epoch; so does `Reporter`.
    learner.path, learner.model_dir = Path(), context.run.models.relative_to(context.run.path)
    if train.learning_rate is not None:
        learner.lr = train.learning_rate
    if train.metrics:
        learner.metrics = [_make(context, "train.metrics", index, item) for index, item in enumerate(train.metrics)]
    learner.add_cbs([_make(context, "train.callbacks", index, item) for index, item in enumerate(train.callbacks)])
    if learner.opt is None:
        learner.create_opt()
    learner.model.to(loaders.device)
    set_precision(learner, train, loaders.device)
    return learner


def _make(context: Context, key_: str, index: int, given: Any) -> Any:
    """A callback or a metric out of `NAME` or `{class_name: NAME, config: {…}}`; NAME with a dot is an import path."""
    where = f"{key_}[{index}]"
    name, settings = entry_of(where, given, "EarlyStoppingCallback")
    found = imported(context, where, name) if "." in name else _own(context, where, name)
    if key_ == "train.metrics" and inspect.isfunction(found) and not settings and not name[:1].isupper():
        return found  # error_rate; fastai spells those that have to be made with a capital: F1Score().
    return make(found, where, name, settings)


def _own(context: Context, where: str, name: str) -> Any:
    """A name without a dot: the job's, or fastai's."""
    import fastai.callback.all
    import fastai.metrics

    module = fastai.metrics if where.startswith("train.metrics") else fastai.callback.all
    for owner in (context.job, module):
        if callable(getattr(owner, name, None)):
            return getattr(owner, name)
    valid = {item for item in dir(module) if callable(getattr(module, item)) and not item.startswith("_")}
    raise Failed(
        _(
            "{where}: neither fastai nor {file} has {name!r}. {nearest} Those of other modules are named with their "
            "path: mypackage.mymodule.Name.",
            where=where,
            file=context.job.__file__,
            name=name,
            nearest=nearest(name, valid),
        )
    )


def print_summary(learner: Any) -> None:
    """The layers, their output and their number of weights, to the log; a network that has none such stops no run."""
    from fastai.torch_core import defaults

    callbacks = learner.cbs
    # A batch goes through the network; what else is the config's or the job's is to see nothing of it.
    learner.cbs = callbacks.filter(lambda callback: type(callback) in defaults.callbacks)
    try:
        text = str(learner.summary()).partition("Callbacks:")[0]
        print(text + "Callbacks:\n" + "\n".join(f"  - {item}" for item in callbacks.sorted("order")), flush=True)
    except Failed:
        raise  # An image of the batch is damaged.
    except Exception as error:
        print(_("fastai could not summarise the model ({error})", error=error), file=sys.stderr, flush=True)
    finally:
        learner.cbs = callbacks
