"""Check the job's loaders, set their batch size and workers, and read class and column names from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.backend import Context

# Attributes of loaders that fastai and this package read: a categorical column of that name would hide them.
_TAKEN = ("c", "n_inp", "loss_func", "vocab")


def adopted(context: Context, loaders: Any, batch_size: int, workers: Mapping[str, int]) -> Any:
    """Return the same loaders with this training batch size, and with `num_workers` if `workers` has it.

    Raises:
        truba_runner.errors.Failed: a loader cannot be resumed, or fastai cannot train with the loaders.
    """
    check_loaders(context, loaders)
    before = loaders.loaders[0].bs
    for index, loader in enumerate(loaders.loaders):
        if loader.bs == before != batch_size:
            loaders.loaders[index] = loader = _resized(loader, batch_size)
        if "num_workers" in workers:
            loader.fake_l.num_workers = workers["num_workers"]
        if not hasattr(loader, "_n_inp"):
            # `new` reads an item, which must happen before anything is restored.
            loader.new()
    return loaders


def _resized(loader: Any, batch_size: int) -> Any:
    """Return a loader with another batch size. One of a language model has a stream per row: it is made anew."""
    if continues(loader):
        return loader.new(bs=batch_size, shuffle=loader.shuffle)
    loader.bs = batch_size
    return loader


def continues(loader: Any) -> bool:
    """Whether each batch continues the text of the one before it (a language model's loader)."""
    text = sys.modules.get("fastai.text.data")
    return text is not None and isinstance(loader, text.LMDataLoader)


def transforms_of(loader: Any) -> list[Any]:
    """Return the batch transforms; fastai's basic DataLoader has a method in their place, so none."""
    return list(getattr(loader.after_batch, "fs", ()))


def check_loaders(context: Context, loaders: Any) -> None:
    """Check that training with the loaders is possible and can be resumed.

    Raises:
        truba_runner.errors.Failed: a loader is missing or unsuitable.
    """
    from fastai.data.load import DataLoader

    file = context.job.__file__
    if len(loaders.loaders) < 2:
        raise Failed(
            "data_block in {file} returned only a training loader: fastai also needs one for validation.",
            file=file,
        )
    for loader in loaders.loaders:
        if not isinstance(loader, DataLoader):
            raise Failed(
                "data_block in {file} returned loaders of {kind}, whose order depends on random numbers that are "
                "not in the checkpoint. Give fastai the data sets: DataLoaders.from_dsets(train, validation, bs=…).",
                file=file,
                kind=f"{type(loader).__module__}.{type(loader).__qualname__}",
            )
        if context.tasks > 1 and continues(loader):
            raise Failed(
                "Each batch of a language model continues the previous one, but of several processes each would "
                "see only some of them. Train it on one GPU: resources.gpus=1."
            )
    _check_columns(context, loaders.loaders[0])


def _check_columns(context: Context, loader: Any) -> None:
    columns = getattr(loader.dataset, "cat_names", ())
    if taken := [str(name) for name in columns if name in _TAKEN]:
        raise Failed(
            "{file}: fastai uses the name {taken} itself, and with a categorical column of that name it fails or "
            "trains something else. Rename the column in load_items: items.rename(columns={example}).",
            file=context.job.__file__,
            taken=", ".join(taken),
            example={taken[0]: f"{taken[0]}_"},
        )


def names(loaders: Any) -> dict[str, Any]:
    """Return the names of columns and classes in the order of the network's inputs and outputs."""
    table = columns(loaders)
    kept = ("cat_names", "cont_names", "y_names", "categories")
    return {"columns": {key: table[key] for key in kept if key in table}, "classes": _listed(_vocab(loaders))}


def _vocab(loaders: Any) -> Any:
    return getattr(loaders, "vocab", None)


def columns(loaders: Any) -> dict[str, Any]:
    """Return a table's categorical columns with their classes and its numeric columns; empty if it is no table.

    `means` and `stds` are those of fastai's Normalize, `fill` the values of FillMissing.
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
    """Return a vocabulary as plain lists of text, whatever type fastai has it in."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return None if values is None else str(values)
    return [_listed(value) for value in values]
