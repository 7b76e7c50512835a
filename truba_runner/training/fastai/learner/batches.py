"""Batches that can be begun at any step: all that is random follows from what is trained, and nothing is stored.

Each stream of random numbers is derived from the seed, the stage, the epoch, and the item or the batch. So the number
of reading processes makes no difference, and an epoch that is gone on with reads nothing of what is done.
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
from truba_runner.language import _
from truba_runner.training.interrupt import Interruption


@dataclass(frozen=True)
class Where:
    """A pass through data: what its random numbers are derived from."""

    seed: int
    stage: int
    epoch: int
    kind: str

    def key(self, *parts: Any) -> int:
        """A seed for one thing of this pass: 32 bits."""
        return key(self.seed, self.stage, self.epoch, self.kind, *parts)


def key(*parts: Any) -> int:
    """32 bits that follow from the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def seed_all(number: int, for_torch: int | None = None) -> None:
    """Every generator that a network or an augmentation may draw from; torch's with a number of its own if given."""
    import torch

    _seed_host(number, for_torch)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number if for_torch is None else for_torch)


def _seed_host(number: int, for_torch: int | None = None) -> None:
    """Those of the CPU. `torch.manual_seed` would cost more than a crop."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number if for_torch is None else for_torch)


def seed_streams(streams: Iterable[Any], number: int) -> None:
    """Generators that the data has of its own begin anew, from one number."""
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
    """One pass of a rank through a loader, from a batch on. `sizes`: how many examples each batch of all ranks has."""

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
        """`loader` is a fastai TfmdDL, and stays as it is but for its generator; `streams`: what else it draws from.

        `most`: batches at most.

        A batch of all ranks is what one process with `ranks` times the batch size would take; each rank gets an equal
        share of its rows, in order. Where they do not divide, the last rank's share is filled up with the first rows.

        Raises:
            truba_runner.errors.Failed: it has no order that could be known beforehand.
        """
        if not getattr(loader, "indexed", False) or loader.n is None:
            raise Failed(
                _(
                    "The {kind} loader goes through a stream, and has no items by number, so that an interrupted run "
                    "could not go on from its middle. Give the DataBlock a list of items.",
                    kind=where.kind,
                )
            )
        if loader.bs is None:
            raise Failed(
                _(
                    "The {kind} loader has no batch size (bs=None), so that its batches cannot be counted. Give it "
                    "single items and bs=….",
                    kind=where.kind,
                )
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
        """The batches of this rank."""
        if not self._items:
            return iter(())
        return iter(_derived(self._loader, self._items, self._where, self._rank, self._first, self._streams))


def _order(loader: Any, where: Where) -> list[int]:
    """The items of an epoch by number, in the order in which the loader's own code has them."""
    seed_all(where.key("order"))
    loader.rng = random.Random(where.key("order"))
    _unshuffle(loader)
    return [int(index) for index in loader.get_idxs()]


def _unshuffle(loader: Any) -> None:
    """A loader of running text shuffles its texts in place: each epoch's order would follow from those before it."""
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
    """A loader of the same kind that goes through these items, each with a stream of its own."""
    from fasttransform import Pipeline, Transform

    create_item = loader.create_item
    step = first

    class Seed(Transform):  # type: ignore[misc]
        """Goes before the batch's own transforms."""

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
    """For a reading process: Slurm signals the whole group, and a training whose readers end goes down with them."""
    for number in Interruption.signals():
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kills the readers that an error has left: they are deaf to SIGTERM, and Python would wait for them for ever."""
    # torch's own would take their end for a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
