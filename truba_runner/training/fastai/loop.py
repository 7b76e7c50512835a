"""fastai's training loop, changed so that it can start at any batch and calls a Watcher after each batch.

While a learner trains, its loop over epochs, its loop over a loader and its `load` are replaced. Everything else, the
schedule and the callbacks included, is fastai's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.training.fastai import state
from truba_runner.training.fastai.learner import private_names
from truba_runner.training.fastai.learner.batches import Pass, Where, seed_all
from truba_runner.training.fastai.ranks import Ranks
from truba_runner.training.fastai.walk import Walked
from truba_runner.training.interrupt import Interrupted


class Watcher:
    """Watcher that only raises Interrupted after a batch if asked to stop: for the finder and after training."""

    def __init__(self, ranks: Ranks) -> None:
        """Use `ranks`, which agree on whether to stop."""
        self.ranks = ranks

    def fit_begins(self, epochs: int) -> int:
        """Return the first epoch to train; called after the callbacks' `before_fit`."""
        return 0

    def training_begins(self) -> tuple[int, bool]:
        """Return the first batch to train and whether a callback ended the epoch there; called after `before_train`."""
        return 0, False

    def order_known(self) -> None:
        """Handle the start of an epoch, once the loader has given the order of its items."""

    def trained(self, done: int) -> None:
        """Handle a trained batch; `done` batches of the epoch are trained."""
        self.look()

    def training_ends(self, cancelled: bool) -> None:
        """Handle the end of an epoch's training; called before the callbacks' `after_train`."""

    def validated(self) -> None:
        """Handle a batch of validation or prediction."""
        self.look()

    def epoch_ends(self, stopped: bool) -> None:
        """Handle the end of an epoch; called after `after_epoch`. `stopped`: a callback ended the fit."""

    def look(self) -> None:
        """Raise Interrupted if any rank had been asked to stop when all last agreed."""
        if self.ranks.interrupted:
            raise Interrupted


class Loop:
    """The training loop of a learner; `stage` and `watcher` apply to what is trained next."""

    def __init__(self, learner: Any, seed: int, ranks: Ranks, walked: Walked, most_steps: int | None = None) -> None:
        """Change nothing until `installed`. `most_steps` limits the batches of each pass, for a rehearsal."""
        self.learner, self.ranks, self.walked = learner, ranks, walked
        self.stage = 0
        self.watcher = Watcher(ranks)
        self._seed, self._most_steps = seed, most_steps

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the learner train by this loop inside the block; restore fastai's methods afterwards."""
        learner, together = self.learner, [self.ranks.callback()] if self.ranks.together else []
        with private_names.replaced(learner, self._epochs, self._batches, self._load):
            with learner.added_cbs(together), self.ranks.synchronised(learner.model):
                yield

    @contextmanager
    def on_trial(self, stage: int) -> Iterator[None]:
        """Train as stage `stage` on trial: restore all state but weights and optimizer afterwards."""
        remembered = [(callback, state.memory_of(callback)) for callback in self.learner.cbs]
        with self.watched_by(Watcher(self.ranks), stage), self.walked.kept():
            yield
        for callback, memory in remembered:
            state.give_memory(callback, memory)

    def make_what_a_step_makes(self, in_fit: bool) -> None:
        """Train one step before restoring a checkpoint, so that callbacks and modules create their objects.

        `in_fit`: `before_fit` has been called already.
        """
        learner = self.learner
        learner.epoch = vars(learner).get("epoch", 0)
        with self.watched_by(Watcher(self.ranks), self.stage), self.walked.kept(with_what_is_made=True):
            if not in_fit:
                learner.n_epoch = 1
                learner("before_fit")
            learner("before_epoch")
            learner.training, learner.dl = True, learner.dls.train
            learner("before_train")
            passed = self._pass(learner.dl, "train")
            learner.n_iter = len(passed.sizes)
            self._one_batch(0, next(iter(passed)), passed, "train")
        if not in_fit:
            private_names.drop_batch(learner)

    @contextmanager
    def watched_by(self, watcher: Watcher, stage: int) -> Iterator[None]:
        """Use `stage` and `watcher` for what is trained inside the block."""
        before, self.watcher, self.stage = self.watcher, watcher, stage
        try:
            yield
        finally:
            self.watcher = before

    def steps(self) -> int:
        """Return the number of batches of a training epoch."""
        return len(self._pass(self.learner.dls.train, "train").sizes)

    def _pass(self, loader: Any, kind: str, epoch: int = 0, first: int = 0) -> Pass:
        where = Where(self._seed, self.stage, epoch, kind)
        rank = self.ranks.rank if self.ranks.together else 0
        streams = self.walked.streams()
        return Pass(loader, where, rank, self.ranks.tasks, first, streams, self._most_steps)

    def _epochs(self) -> None:
        from fastai.callback.core import CancelFitException

        learner = self.learner
        for epoch in range(self.watcher.fit_begins(learner.n_epoch), learner.n_epoch):
            learner.epoch = epoch
            try:
                private_names.one_epoch(learner)
            except CancelFitException:
                self.watcher.epoch_ends(stopped=True)
                raise
            self.watcher.epoch_ends(stopped=False)

    def _load(self, *given: Any, **named: Any) -> Any:
        """Replace `Learner.load`: first wait for rank 0, which alone writes the file."""
        self.ranks.wait_for_all()
        return type(self.learner).load(self.learner, *given, **named)

    def _batches(self) -> None:
        if not hasattr(self.learner.dl, "create_item"):
            self._given_batches()
        elif self.learner.training:
            self._train()
        else:
            self._validate()

    def _train(self) -> None:
        from fastai.callback.core import CancelTrainException

        learner = self.learner
        first, cancelled = self.watcher.training_begins()
        passed = self._pass(learner.dl, "train", learner.epoch, first)
        self.watcher.order_known()
        learner.n_iter = len(passed.sizes)
        try:
            if cancelled:
                raise CancelTrainException
            for step, batch in enumerate(passed, start=first):
                self._one_batch(step, batch, passed, "train")
                self.watcher.trained(step + 1)
        except CancelTrainException:
            self.watcher.training_ends(cancelled=True)
            raise
        self.watcher.training_ends(cancelled=False)

    def _validate(self) -> None:
        passed = self._pass(self.learner.dl, "validation", self.learner.epoch)
        self.learner.n_iter = len(passed.sizes)
        for step, batch in enumerate(passed):
            self._one_batch(step, batch, passed, "validation")
            self.ranks.agree()
            self.watcher.validated()

    def _given_batches(self) -> None:
        """Run over a list of batches in place of a loader: `get_preds(dl=[batch])`. Every rank has all of them."""
        self.learner.n_iter, self.ranks.batch_size = len(self.learner.dl), 0
        for step, batch in enumerate(self.learner.dl):
            self.learner.one_batch(step, batch)

    def _one_batch(self, step: int, batch: Any, passed: Pass, kind: str) -> None:
        where = Where(self._seed, self.stage, self.learner.epoch, kind)
        # Dropout is to differ between ranks; what callbacks draw is not: they may change weights by it.
        seed_all(where.key("step", step), for_torch=where.key("step", step, self.ranks.rank))
        self.ranks.batch_size = passed.sizes[step]
        self.learner.one_batch(step, batch)
