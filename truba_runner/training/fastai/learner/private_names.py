"""Replace and call what fastai names privately, each name once.

Checked with fastai 2.8.12: `fit` calls `_do_fit`, and each epoch `all_batches`, once for training and once for
validation. A version that no longer calls a replaced method trains without it: a resumed run begins its stage anew,
ranks do not divide batches among them, and no checkpoint is saved within a stage. Any other name that is gone ends the
training with an AttributeError or ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.older_python import zip_equal

# Attributes that a learner has while its methods are replaced.
REPLACED = ("_do_fit", "all_batches", "load")


@contextmanager
def replaced(
    learner: Any, epochs: Callable[[], None], batches: Callable[[], None], load: Callable[..., Any]
) -> Iterator[None]:
    """Replace a learner's loop over epochs, its loop over a loader, and its `load` inside the block."""
    for name, function in zip_equal(REPLACED, (epochs, batches, load)):
        setattr(learner, name, function)
    try:
        yield
    finally:
        for name in REPLACED:
            delattr(learner, name)


def one_epoch(learner: Any) -> None:
    """Train and validate the epoch `learner.epoch`, with its events."""
    from fastai.callback.core import CancelEpochException

    learner._with_events(learner._do_epoch, "epoch", CancelEpochException)


def drop_batch(learner: Any) -> None:
    """Let the learner forget its last batch, as after a fit."""
    learner._end_cleanup()


def optimizer_class() -> type:
    """Return the base class of fastai's optimizers."""
    from fastai.optimizer import _BaseOptimizer

    found: type = _BaseOptimizer
    return found
