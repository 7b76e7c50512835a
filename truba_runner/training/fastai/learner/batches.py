"""Passes through a DataLoader that can start at any step, with random numbers derived from the position.

Each random stream is derived from the seed, the stage, the epoch, and the item or batch, so no random state is stored,
the number of reading processes makes no difference, and a resumed epoch does not read the batches that are done.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from truba_runner.errors import Failed
from truba_runner.training.interrupt import Interruption


@dataclass(frozen=True)
class Where:
    """The position that the random numbers of one pass through data are derived from."""

    seed: int
    stage: int
    epoch: int
    kind: str

    def key(self, *parts: Any) -> int:
        """Return a 32-bit seed for one purpose in this pass."""
        return key(self.seed, self.stage, self.epoch, self.kind, *parts)


def key(*parts: Any) -> int:
    """Return a 32-bit hash of the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def seed_all(number: int, for_torch: int | None = None) -> None:
    """Seed every global generator, torch's with `for_torch` if given: networks and augmentations draw from them."""
    import torch

    _seed_host(number, for_torch)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number if for_torch is None else for_torch)


def _seed_host(number: int, for_torch: int | None = None) -> None:
    """Seed the CPU's generators; `torch.manual_seed` would take longer than a crop."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number if for_torch is None else for_torch)


def seed_streams(streams: Iterable[Any], number: int) -> None:
    """Seed the data's own generators with one number."""
    import numpy as np
    import torch

    for stream in streams:
        if isinstance(stream, torch.Generator):
            stream.manual_seed(number)
        elif isinstance(stream, np.random.Generator):
            kind: Any = type(stream.bit_generator)
            stream.bit_generator.state = kind(number).state
        else:
            stream.seed(number)


class Pass:
    """One rank's pass through a loader, from a given batch on; `sizes`: examples in each batch of all ranks."""

    def __init__(
        self,
        loader: Any,
        where: Where,
        rank: int = 0,
        ranks: int = 1,
        first: int = 0,
        streams: Iterable[Any] = (),
        most: int | None = None,
    ) -> None:
        """Fix the order of items of `loader`, a fastai TfmdDL, changing only its generator and the order of its texts.

        `streams`: the other generators that it draws from; `most`: maximum number of batches.

        A batch of all ranks is that of one process with `ranks` times the batch size; each rank gets an equal share of
        its rows, in order. If the rows do not divide, the last shares are filled up with the first rows.

        Raises:
            truba_runner.errors.Failed: the loader's order or its number of batches cannot be known beforehand.
        """
        if not getattr(loader, "indexed", False) or loader.n is None:
            raise Failed(
                "The {kind} loader reads a stream and cannot access items by number, so an interrupted run could "
                "not resume in the middle of it. Give the DataBlock a list of items.",
                kind=where.kind,
            )
        if loader.bs is None:
            raise Failed(
                "The {kind} loader has no batch size (bs=None), so its batches cannot be counted. Give it single "
                "items and bs=….",
                kind=where.kind,
            )
        self._streams = list(streams)
        seed_streams(self._streams, where.key("order"))
        order = _order(loader, where)
        whole = loader.bs * ranks
        batches = [order[start : start + whole] for start in range(0, len(order), whole)]
        if loader.drop_last and batches and len(batches[-1]) < whole:
            batches.pop()
        batches = batches[:most]
        self.sizes = [len(batch) for batch in batches]
        self._items = [item for batch in batches[first:] for item in _share(batch, rank, ranks)]
        self._loader, self._where, self._rank, self._first = loader, where, rank, first

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this rank's batches."""
        if not self._items:
            return iter(())
        return iter(_derived(self._loader, self._items, self._where, self._rank, self._first, self._streams))


def _order(loader: Any, where: Where) -> list[int]:
    """Return an epoch's item numbers in the order that the loader's own code gives."""
    seed_all(where.key("order"))
    loader.rng = random.Random(where.key("order"))
    _unshuffle(loader)
    return [int(index) for index in loader.get_idxs()]


def _unshuffle(loader: Any) -> None:
    """Undo the in-place shuffling of a language-model loader: otherwise each order would depend on earlier epochs."""
    from fastcore.xtras import ReindexCollection

    texts = vars(loader).get("items")
    if isinstance(texts, ReindexCollection):
        for place in range(len(texts)):
            texts.idxs[place] = place


def _share(batch: list[int], rank: int, ranks: int) -> list[int]:
    each = -(-len(batch) // ranks)
    filled = (batch * ranks)[: each * ranks]
    return filled[rank * each : (rank + 1) * each]


def _derived(loader: Any, items: list[int], where: Where, rank: int, first: int, streams: list[Any]) -> Any:
    """Return a loader of the same kind over `items` that seeds every item and batch."""
    from fasttransform import Pipeline, Transform

    create_item = loader.create_item
    step = first

    class Seed(Transform):  # type: ignore[misc]
        """Transform that seeds a batch before the batch's own transforms run."""

        order = -1000

        def __call__(self, batch: Any, **others: Any) -> Any:
            nonlocal step
            seed_all(where.key("batch", rank, step))
            seed_streams(streams, where.key("batch", rank, step))
            step += 1
            return batch

    def seeded_item(index: int) -> Any:
        _seed_host(where.key("item", index))
        seed_streams(streams, where.key("item", index))
        return create_item(index)

    return loader.new(
        shuffle=False,
        drop_last=False,
        get_idxs=lambda: items,
        create_item=seeded_item,
        wif=_ignore_signals,
        after_batch=Pipeline([Seed(), *getattr(loader.after_batch, "fs", [loader.after_batch])]),
    )


def _ignore_signals() -> None:
    """Ignore signals in a reading process: Slurm signals the whole group, and training fails if its readers end."""
    for number in Interruption.signals():
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kill reading processes left by an error: they ignore SIGTERM, and Python would wait for them forever."""
    # torch's own handler would take their end for a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
