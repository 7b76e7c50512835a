"""Turn what a fastai job's `data_block` returns into loaders of any image and batch size on this process' device."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from truba_runner.data.image_pack import cores
from truba_runner.errors import Failed
from truba_runner.rules.training import divisible_sizes
from truba_runner.training.backend import Context
from truba_runner.training.fastai.learner.batches import key, seed_all
from truba_runner.training.fastai.learner.loaders import adopted
from truba_runner.training.fastai.learner.photographs import Photographs, opened
from truba_runner.training.job_calls import accepted, call
from truba_runner.training.notes import note, one_line

DEFAULT_BATCH_SIZE = 64
_MOST_WORKERS = 16
# fastai's own default batch size in DataBlock.summary.
_SUMMARY_EXAMPLES = 4
# The memory address in an object's text, which differs in each start.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Data:
    """A job's items, and loaders of them in any size."""

    def __init__(self, context: Context, device: Any, at_the_end: ExitStack) -> None:
        """Call the job's `load_items`; `at_the_end` closes what reading photographs opens.

        Raises:
            truba_runner.errors.Failed: there are no items, or the job's functions do not take these options.
        """
        self._context, self._device = context, device
        options, job = context.experiment.data.options, context.job
        loading = self._loading(options)
        self._options = {option: value for option, value in options.items() if option not in loading}
        name, folder = context.experiment.data.name, Path(context.experiment.data.folder)
        self.items = call(job, "load_items", "data.options", loading, name=name, folder=folder)
        self._photographs: Photographs | None = None
        if isinstance(self.items, Path):
            self._photographs = at_the_end.enter_context(opened(context, self.items, self._block))
            self.items = self._photographs.items
        if not len(self.items):
            raise Failed(
                "load_items in {file} found nothing for data.name={name} in {folder}.",
                file=job.__file__,
                name=name,
                folder=folder,
            )
        # Batch transforms that `build_learner` added, as vision_learner does: later loaders need them too.
        self.added: list[Any] = []

    def _loading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that `load_items` takes and `data_block` does not."""
        loads, blocks = (getattr(self._context.job, name, None) for name in ("load_items", "data_block"))
        others = accepted(blocks, options)
        return {name: value for name, value in accepted(loads, options).items() if name not in others}

    def source(self, batch_size: int | None = None, **changes: Any) -> Any:
        """Return the result of the job's `data_block`; `changes` override the config's options."""
        if self._photographs:
            return self._photographs.read_by(self._block(self.items, **changes))
        options = {**self._options, **changes}
        function = getattr(self._context.job, "data_block", None)
        given = accepted(function, {"batch_size": self.batch_size(batch_size)})
        given = {name: value for name, value in given.items() if name not in options}
        return call(self._context.job, "data_block", "data.options", options, items=self.items, **given)

    def _block(self, items: Any, **changes: Any) -> Any:
        """Return the job's DataBlock of photographs."""
        from fastai.data.block import DataBlock

        job = self._context.job
        made = call(job, "data_block", "data.options", {**self._options, **changes}, items=items)
        if not isinstance(made, DataBlock):
            raise Failed(
                "data_block in {file} returned a {kind}: if load_items returns the path of a folder of images, it "
                "has to be a DataBlock.",
                file=job.__file__,
                kind=type(made).__name__,
            )
        return made

    def loaders(self, size: int | None = None, batch_size: int | None = None) -> Any:
        """Return fastai DataLoaders on this process' device; `size` and `batch_size` override the config's."""
        from fastai.data.block import DataBlock
        from fastai.data.core import DataLoaders, FilteredBase

        seed_all(key(self._context.experiment.train.seed, "loaders"))
        made = self.source(batch_size, **({} if size is None else {"size": size}))
        if isinstance(made, DataBlock):
            loaders = made.dataloaders(self.items, num_workers=self._workers(), **self._settings(batch_size))
        elif isinstance(made, FilteredBase):
            loaders = made.dataloaders(**self._own_workers(), **self._settings(batch_size))
        elif isinstance(made, DataLoaders):
            loaders = made
        else:
            raise Failed(
                "data_block in {file} returned a {kind}. It has to be a DataBlock, an object whose examples "
                "loaders can be made of (Datasets, TabularPandas), or fastai's DataLoaders.",
                file=self._context.job.__file__,
                kind=type(made).__name__,
            )
        loaders = adopted(self._context, loaders, self._size_of(loaders, batch_size), self._own_workers())
        loaders.to(self._device)
        if self.added:
            loaders.add_tfms(self.added, "after_batch")
        return loaders

    def _settings(self, batch_size: int | None) -> dict[str, Any]:
        pinned = self._device.type == "cuda"
        return {"bs": self.batch_size(batch_size), "device": self._device, "pin_memory": pinned}

    def _size_of(self, loaders: Any, given: int | None) -> int:
        """Return the batch size of each process; if the config has none, that of loaders that the job made itself."""
        return self.batch_size(given or self._context.experiment.train.batch_size or loaders.loaders[0].bs)

    def summary(self) -> None:
        """Log fastai's summary of how an example and a batch are made.

        Raises:
            truba_runner.errors.Failed: the training set is empty, or an image is damaged.
        """
        from fastai.data.block import DataBlock

        seed_all(key(self._context.experiment.train.seed, "summary"))
        # Making loaders a second time for a summary may take long.
        if not isinstance(block := self.source(), DataBlock):
            return
        source = self._photographs.path if self._photographs else self.items
        if block.splitter is not None and not len(block.splitter(self.items)[0]):
            raise Failed(
                "The training set is empty: the DataBlock's splitter holds out all {count} items.",
                count=len(self.items),
            )
        try:
            block.summary(source, bs=min(_SUMMARY_EXAMPLES, len(self.items)))
        except Failed:
            raise
        except Exception as error:
            # For example, a language model's texts alone make no batch. Real mistakes fail in training.
            note(self._context, "fastai could not summarise the data ({error})", error=one_line(error))

    def sha256(self) -> str:
        """Return the SHA-256 of the items' names, which identifies the data of a checkpoint."""
        return sha256_of(self.items)

    def batch_size(self, given: int | None) -> int:
        """Return the batch size of each process."""
        train, tasks = self._context.experiment.train, self._context.tasks
        size = given or train.batch_size or DEFAULT_BATCH_SIZE
        if train.batch_scaling == "per_replica":
            return size
        if size % tasks:
            raise Failed(
                "A batch of {size} cannot be divided equally among {tasks} processes. Set it to {sizes}, in "
                "train.batch_size or in the recipe, wherever it is set.",
                size=size,
                tasks=tasks,
                sizes=divisible_sizes(size, tasks),
            )
        return size // tasks

    def _workers(self) -> int:
        given = self._context.experiment.data.workers
        return min(_MOST_WORKERS, cores() - 1) if given is None else given

    def _own_workers(self) -> dict[str, int]:
        """Return `num_workers` only if the config sets it, for loaders that choose it themselves."""
        given = self._context.experiment.data.workers
        return {} if given is None else {"num_workers": given}


def sha256_of(items: Any) -> str:
    """Return the SHA-256 of a table's columns and cells, of files' names, or of the text of each item."""
    pandas = sys.modules.get("pandas")
    if pandas and isinstance(items, pandas.DataFrame):
        return _sha256_of_table(pandas, items)
    names = [item.name if isinstance(item, Path) else _ADDRESS.sub("", str(item)) for item in items]
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()


def sha256_of_split(loaders: Any) -> str:
    """Return the SHA-256 of the items of each loader, or of their number if a loader has no list of items."""
    found = []
    for loader in loaders.loaders:
        items = getattr(loader.dataset, "items", None)
        found.append(str(loader.n) if items is None or not hasattr(items, "__len__") else sha256_of(items))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _sha256_of_table(pandas: Any, table: Any) -> str:
    digest = hashlib.sha256(repr(list(table.columns)).encode())
    for name in table.columns:
        try:
            digest.update(pandas.util.hash_pandas_object(table[name], index=False).to_numpy().tobytes())
        except TypeError:  # Such as lists, which have no hash.
            digest.update(_ADDRESS.sub("", repr(table[name].tolist())).encode())
    return digest.hexdigest()
