"""Exact resume of a fastai training: what a checkpoint holds, when it is saved, and how it is restored.

| position | means |
|---|---|
| epoch E, step 0 | E epochs, over all stages, are trained, validated and recorded; perhaps the next finder too |
| epoch E, step S | S steps of the next epoch are trained; if S is all of them, its validation is still to come |

Finished stages are skipped, except freezing and resizing, which cost nothing and leave no trace in the weights. A
checkpoint holds no random numbers: they are derived from the position (`learner/batches.py`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import IO, Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import Position
from truba_runner.training import resuming
from truba_runner.training.backend import Context
from truba_runner.training.fastai import outputs, rank_state
from truba_runner.training.fastai import state as fastai_state
from truba_runner.training.fastai.loop import Loop, Watcher
from truba_runner.training.fastai.reporter import Reporter
from truba_runner.training.interrupt import Interrupted
from truba_runner.training.notes import note
from truba_runner.training.ranks import checkpoints
from truba_runner.training.saver import Best, Saver
from truba_runner.training.summaries import event_files

FORMAT = 2


class Resume(Watcher):
    """Watcher that saves checkpoints during training and resumes from the newest one."""

    def __init__(self, context: Context, loop: Loop, reporter: Reporter, signature: dict[str, Any]) -> None:
        """Read the newest checkpoint; `signature` must match the one that it was saved with."""
        super().__init__(loop.ranks)
        self._started = time.perf_counter()
        self._context, self._loop, self._reporter = context, loop, reporter
        self._learner, self._walked, self._step_is_known = loop.learner, loop.walked, False
        self._before_order: dict[str, Any] = {}
        self._waiting: dict[str, Any] | None = None
        self._settings = context.experiment.checkpoint
        self._saver = Saver(context, reporter.curves.writer.settle)
        self._signature = signature
        self._stage = self._first_epoch = self._done = 0
        self._cancelled = False
        self._beside: dict[str, Any] | None = None
        self.ranks.time_is_up = self._saver.time_is_up
        self._found = self._newest()
        state = self._found[1] if self._found else {}
        if state:
            self._check(state)
        # The checkpoint's stage, counted from 0, and whether it is finished; -1 without a checkpoint.
        self.stage: int = state.get("stage", -1)
        self._finished: bool = state.get("finished", False)
        # Suggestions of each lr_find, by its name.
        self.answers: dict[str, dict[str, float | None]] = state.get("answers", {})
        # A run resumed from another run's checkpoint has no best of its own yet. Ranks have to agree on it.
        has_best = self.ranks.together or self._saver.store.has_best()
        self._best = Best(self._settings, state.get("best") if has_best else None)
        if context.rank == 0:
            # Without a checkpoint every step is written again.
            event_files.cut(context.run.tensorboard, state.get("event_files", {}))

    def _newest(self) -> tuple[Position, dict[str, Any]] | None:
        """Return the newest checkpoint, the same one on every rank, with the state as this rank had it."""
        found = checkpoints.newest(self.ranks, self._saver.store, read_state)
        return found and (found[0], rank_state.of_rank(self.ranks.rank, found[1]))

    def _check(self, state: dict[str, Any]) -> None:
        resuming.check_format(self._context, state["format"], FORMAT)
        then, now = state["signature"], self._signature
        # A recipe may have become longer; the stages trained so far must be the same.
        now = {**now, "recipe": now["recipe"][: len(then["recipe"])]}
        if then["names_of_the_examples"] == now["names_of_the_examples"]:
            self._check_order(then, now)
        resuming.check_same(self._context, then, now, "model")

    def _check_order(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuse the same examples with another order of classes or columns or another split: no setting does that."""
        file = self._context.job.__file__
        if then["order"] != now["order"]:
            raise Failed(
                "{file}: classes or columns are in another order than when this run began ({then} then, {now} "
                "now). They come from a set, or from a folder's listing, whose order differs at each start: sort "
                "them (vocab=sorted(…), cont_names=[…]), and start anew with fresh=true.",
                file=file,
                then=then["order"],
                now=now["order"],
            )
        if then["division"] != now["division"]:
            raise Failed(
                "{file}: the examples are split into training and validation in another way than when this run "
                "began. Give the splitter a seed, as in RandomSplitter(seed=42), or sort its items, and start anew "
                "with fresh=true.",
                file=file,
            )

    # -- resuming ----------------------------------------------------------------------------------------------

    def is_done(self, stage: int) -> bool:
        """Whether an earlier start finished this training or finder stage; at the last such stage restore all."""
        if stage == self.stage and self._finished:
            self.restore(in_fit=False)
            return True
        return stage < self.stage

    def stage_begins(self, stage: int, first_epoch: int) -> None:
        """Begin a training or finder stage; `first_epoch`: epochs of all stages before it."""
        self._stage, self._first_epoch, self._done = stage, first_epoch, 0

    def restore(self, in_fit: bool = True) -> None:
        """Restore the checkpoint, if it has not been restored yet, and record that."""
        if self._found is None:
            return
        (position, state), self._found = self._found, None
        if self._walked.lacks(state["walked"]):
            self._loop.make_what_a_step_makes(in_fit)
        fastai_state.give_weights(self._learner, state)
        fastai_state.give_besides(self._learner, state)
        # A loader may count its passes and is asked for its order again, so its state before that is restored first.
        self._walked.give(state["before_order"] or state["walked"])
        self._before_order, self._waiting = state["before_order"], state["walked"] if state["before_order"] else None
        for text in state["notes"]:
            note(self._context, text)
        self._reporter.set_state(state["reporter"])
        resuming.tell(self._context, position, state["steps"], self._started)

    def fit_begins(self, epochs: int) -> int:
        """Return the first epoch of the stage to train or to finish.

        Raises:
            fastai.callback.core.CancelFitException: a callback ended this stage before the interruption.
        """
        from fastai.callback.core import CancelFitException

        self._walked.made_also()
        if self._found is None:
            return 0
        position, state = self._found
        if not position.step:
            self.restore()
        if state["stopped"]:
            raise CancelFitException
        epoch: int = state["epoch"]
        return epoch

    def training_begins(self) -> tuple[int, bool]:
        """Return the first step of the epoch to train, and whether a callback ended the epoch's training."""
        self._done, self._cancelled = 0, False
        self._reporter.epoch_begins()
        if self._found is not None:
            self._done, self._cancelled = self._found[0].step, self._found[1]["cancelled"]
            self.restore()
        else:
            self._before_order = self._walked.taken("dls")
        return self._done, self._cancelled

    def order_known(self) -> None:
        """Restore the state at the checkpoint, now that the loader has given its order."""
        if self._waiting is not None:
            self._walked.give(self._waiting)
            self._waiting = None

    # -- saving ------------------------------------------------------------------------------------------------

    def trained(self, done: int) -> None:
        """Report a trained batch; save if a checkpoint is due.

        Raises:
            Interrupted: a rank was asked to stop, and the state is saved.
        """
        self._done = done
        if not self._step_is_known:
            self._walked.made_also()
            self._step_is_known = True
        self._reporter.trained(self._learner.epoch, done)
        every = self._settings.every_steps
        if self.ranks.interrupted:
            self._save(self._position())
            self._leave()
        elif done < self._learner.n_iter and (self.ranks.due or (every is not None and not done % every)):
            self._save(self._position())

    def training_ends(self, cancelled: bool) -> None:
        """Keep the state before validation: an interrupted validation is repeated from there."""
        self._cancelled = cancelled
        # A callback may set other weights for the validation.
        self._beside = {**self._besides(), **fastai_state.model_weights(self._learner)}

    def validated(self) -> None:
        """Save the state before validation if a checkpoint is due or a rank was asked to stop.

        Raises:
            Interrupted: a rank was asked to stop, and the state is saved.
        """
        if self.ranks.interrupted or self._saver.time_is_up():
            self._save(self._position(), beside=self._beside)
        if self.ranks.interrupted:
            self._leave()

    def epoch_ends(self, stopped: bool) -> None:
        """Report and save an epoch, also one that a callback ended together with the fit.

        Raises:
            Interrupted: a rank was asked to stop, and the state is saved.
        """
        epoch = self._learner.epoch
        finished = len(self._learner.recorder.values) > epoch
        row = self._reporter.epoch_ends(epoch) if finished else {}
        self._done, self._cancelled, self._beside, self._before_order = 0, False, None, {}
        if row:
            self._best.print_if_missing(row)
        position, best = Position(self._first_epoch + epoch + 1, 0), self._best.improved_by(row)
        outputs.keep_models(self._context, self._learner, position.epoch, best)
        self._save(position, best, beside=self._besides(epoch + 1, stopped))
        if self.ranks.agree().stop:
            self._leave(position)

    def stage_ends(self, epochs: int, may_grow: bool) -> None:
        """Save that a stage of `epochs` epochs (0 for an lr_find) is finished, after `after_fit`: it is never repeated.

        `may_grow`: a longer run may resume inside this stage, so keep the checkpoint of its last epoch instead.
        """
        if may_grow:
            return
        self._save(Position(self._first_epoch + epochs, 0), beside=self._besides(finished=True))

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        self._saver.finish()

    def _position(self) -> Position:
        return Position(self._first_epoch + self._learner.epoch, self._done)

    def _leave(self, position: Position | None = None) -> None:
        position = position or self._position()
        self._saver.background.wait()
        if position.step:
            self._context.progress.update(epoch=position.epoch + 1, step=position.step)
        # A rank that ends while rank 0 still writes might be taken for lost.
        self.ranks.wait_for_all()
        raise Interrupted

    def _save(self, position: Position, best: bool = False, beside: dict[str, Any] | None = None) -> None:
        """Copy the state now and write it in the background; rank 0 does so for all.

        `beside`: result of `_besides`; without it every rank has to call this.
        """
        beside, write = beside or self._besides(), None
        if not self.ranks.rank:
            state = {**fastai_state.weights(self._learner), **beside}
            write = partial(_write, {**state, "format": FORMAT, "signature": self._signature})
        self._saver.save(position, write, best)

    def _besides(self, epoch: int | None = None, stopped: bool = False, finished: bool = False) -> dict[str, Any]:
        """Return all state but weights and optimizer. Every rank calls this.

        `epoch`: finished epochs of the stage, by default the number of the current one; `stopped`: a callback ended the
        stage there; `finished`: the stage is finished, and the next one is to come.
        """
        own = {
            **fastai_state.besides(self._learner),
            "walked": self._walked.taken(),
            # Empty between epochs.
            "before_order": self._before_order,
        }
        return {
            **own,
            "others": rank_state.differences(self.ranks, own) if self.ranks.together else [],
            "notes": list(self._context.notes),
            "stage": self._stage,
            "epoch": self._learner.epoch if epoch is None else epoch,
            "steps": self._learner.n_iter if self._done else 0,
            "cancelled": self._cancelled,
            "stopped": stopped,
            "finished": finished,
            "answers": {name: dict(rates) for name, rates in self.answers.items()},
            "reporter": self._reporter.get_state(),
            "best": self._best.value,
            "event_files": self._reporter.curves.writer.sizes(),
        }


def _write(state: dict[str, Any], file: IO[bytes]) -> None:
    import torch

    torch.save(state, file)


def read_state(file: IO[bytes]) -> dict[str, Any]:
    """Read a checkpoint without executing code from it; `truba_runner.training.backend.reader` describes the result.

    Raises:
        ValueError: the file is something else.
    """
    import pickle

    import torch

    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            _("it is not a checkpoint of this backend: {error}", error=str(error).splitlines()[0])
        ) from error
    return state
