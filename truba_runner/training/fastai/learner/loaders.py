"""Loaders that a job has made itself: whether their order can be known, and in the sizes that the config asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.backend import Context

# What fastai, and we, ask loaders for: a categorical column of that name would answer with its classes.
_TAKEN = ("c", "n_inp", "loss_func", "vocab")


def adopted(context: Context, loaders: Any, batch_size: int, workers: Mapping[str, int]) -> Any:
    """The same loaders, with this batch size for training, and `num_workers` where `workers` has it.

    Raises:
        truba_runner.errors.Failed: one of them could not be gone on with, or fastai cannot train with them.
    """
    check_loaders(context, loaders)
    before = loaders.loaders[0].bs
    for index, loader in enumerate(loaders.loaders):
        if loader.bs == before != batch_size:
            loaders.loaders[index] = loader = _resized(loader, batch_size)
        if "num_workers" in workers:
            loader.fake_l.num_workers = workers["num_workers"]
        if not hasattr(loader, "_n_inp"):
            # It reads an item, which is to happen before anything is restored.
            loader.new()
    return loaders


def _resized(loader: Any, batch_size: int) -> Any:
    """With other batches. A loader of running text is cut into as many streams as a batch has rows: made anew."""
    if continues(loader):
        return loader.new(bs=batch_size, shuffle=loader.shuffle)
    loader.bs = batch_size
    return loader


def continues(loader: Any) -> bool:
    """Whether each batch goes on where the one before it ends, as a language model's."""
    text = sys.modules.get("fastai.text.data")
    return text is not None and isinstance(loader, text.LMDataLoader)


def transforms_of(loader: Any) -> list[Any]:
    """Of its batches; fastai's plainest loader has a method in their place."""
    return list(getattr(loader.after_batch, "fs", ()))


def check_loaders(context: Context, loaders: Any) -> None:
    """Looks whether they can be gone on with, and trained with.

    Raises:
        truba_runner.errors.Failed: they cannot.
    """
    from fastai.data.load import DataLoader

    file = context.job.__file__
    if len(loaders.loaders) < 2:
        raise Failed(_("data_block in {file} returned a training loader alone: fastai needs a second one to "
                       "validate with.", file=file))  # fmt: skip
    for loader in loaders.loaders:
        if not isinstance(loader, DataLoader):
            raise Failed(
                _(
                    "data_block in {file} returned loaders of {kind}, whose order follows from random numbers that no "
                    "checkpoint has. Give fastai the data sets: DataLoaders.from_dsets(train, validation, bs=…).",
                    file=file,
                    kind=f"{type(loader).__module__}.{type(loader).__qualname__}",
                )
            )
        if context.tasks > 1 and continues(loader):
            raise Failed(
                _(
                    "A language model's batches each go on where the one before them ends, and several processes "
                    "would each see every other one. Train it on one: resources.gpus=1."
                )
            )
    _check_columns(context, loaders.loaders[0])


def _check_columns(context: Context, loader: Any) -> None:
    columns = getattr(loader.dataset, "cat_names", ())
    if taken := [str(name) for name in columns if name in _TAKEN]:
        raise Failed(
            _(
                "{file}: fastai takes a categorical column that is called {taken} for something of its own, and fails "
                "or trains something else. Give it another name in load_items: items.rename(columns={example}).",
                file=context.job.__file__,
                taken=", ".join(taken),
                example={taken[0]: f"{taken[0]}_"},
            )
        )


def names(loaders: Any) -> dict[str, Any]:
    """The order of classes and columns, by what they are called: what a network's inputs and outputs stand for."""
    table = columns(loaders)
    kept = ("cat_names", "cont_names", "y_names", "categories")
    return {"columns": {key: table[key] for key in kept if key in table}, "classes": _listed(_vocab(loaders))}


def _vocab(loaders: Any) -> Any:
    return getattr(loaders, "vocab", None)


def columns(loaders: Any) -> dict[str, Any]:
    """Of a table: which are categories, with their classes, and which numbers, with what fastai has made of them.

    `means` and `stds` are those of Normalize, `fill` those of FillMissing; empty where the examples are no table.
    """
    table = loaders.loaders[0].dataset
    if not hasattr(table, "cat_names"):
        return {}
    found: dict[str, Any] = {
        name: list(map(str, getattr(table, name))) for name in ("cat_names", "cont_names", "y_names")
    }
    for step in table.procs.fs:
        kept = vars(step)
        if isinstance(kept.get("classes"), Mapping):
            found["categories"] = {str(name): _listed(kept["classes"][name]) for name in kept["classes"]}
        for ours, theirs in (("means", "means"), ("stds", "stds"), ("fill", "na_dict")):
            if isinstance(kept.get(theirs), Mapping):
                found[ours] = {str(name): float(value) for name, value in kept[theirs].items()}
    return found


def _listed(values: Any) -> Any:
    """A vocabulary as plain lists, whatever fastai has it in."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return None if values is None else str(values)
    return [_listed(value) for value in values]
