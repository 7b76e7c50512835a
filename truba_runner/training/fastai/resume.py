"""Exact resume of a fastai training: what a checkpoint holds, when one is saved, and how a run goes on from it.

| position | means |
|---|---|
| epoch E, step 0 | E epochs, over all stages, are finished, validated and on record; so may be the finder after them |
| epoch E, step S | S steps of the epoch after them are trained; all of them: its validation is still to come |

Stages that are done are passed over, but for what costs nothing and leaves no trace in the weights: freezing, and
another size. Random numbers are no part of a checkpoint; they follow from where the training is (`fastai_streams`).
"""

from __future__ import annotations

import sys
import time
from typing import IO, Any

from truba_runner.errors import Failed, nearest
from truba_runner.language import _
from truba_runner.runs.checkpoints import CheckpointStore, Position, is_better
from truba_runner.training import resuming
from truba_runner.training.backend import Context
from truba_runner.training.background import Background
from truba_runner.training.fastai import outputs, rank_state
from truba_runner.training.fastai import state as fastai_state
from truba_runner.training.fastai.loop import Loop, Watcher
from truba_runner.training.fastai.reporter import Reporter
from truba_runner.training.interrupt import Interrupted
from truba_runner.training.notes import note
from truba_runner.training.summaries import event_files

FORMAT = 2


class Resume(Watcher):
    """Saves a training while it goes on, and lets it go on from what was saved."""

    def __init__(self, context: Context, loop: Loop, reporter: Reporter, signature: dict[str, Any]) -> None:
        """Reads the newest checkpoint; `signature` is what has to be the same for it to mean the same."""
        super().__init__(loop.ranks)
        self._started = time.perf_counter()
        self._context, self._loop, self._reporter = context, loop, reporter
        self._learner, self._walked, self._step_is_known = loop.learner, loop.walked, False
        self._before_order: dict[str, Any] = {}
        self._waiting: dict[str, Any] | None = None
        self._settings = context.experiment.checkpoint
        self._store = CheckpointStore(context.run.checkpoints, self._settings.keep)
        self._background = Background()
        self._signature = signature
        self._stage = self._first_epoch = self._done = 0
        self._cancelled = self._monitor_missed = False
        self._beside: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        self.ranks.time_is_up = self._time_is_up
        self._found = self._newest()
        state = self._found[1] if self._found else {}
        if state:
            self._check(state)
        # The stage of the checkpoint, counted from 0, and whether it is over; -1 where all are still to come.
        self.stage: int = state.get("stage", -1)
        self._finished: bool = state.get("finished", False)
        # What each lr_find has suggested.
        self.answers: dict[str, dict[str, float | None]] = state.get("answers", {})
        # As in keras_resume.
        self._best: float | None = state.get("best") if context.tasks > 1 or self._store.has_best() else None
        if context.rank == 0:
            # Without a checkpoint every step is told again.
            event_files.cut(context.run.tensorboard, state.get("event_files", {}))

    def _newest(self) -> tuple[Position, dict[str, Any]] | None:
        """The newest checkpoint, the same one on every rank."""
        found = self._store.newest(_read) if self.ranks.rank == 0 else None
        if not self.ranks.together:
            return found
        position = found[0] if found else Position(0, 0)
        # Rank 0 alone looks which is the newest: another may see files that it has passed over, or not see all.
        exists, epoch, step = self.ranks.from_rank_0([float(found is not None), position.epoch, position.step])
        if not exists:
            return None
        position = Position(int(epoch), int(step))
        return found or (position, rank_state.of_rank(self.ranks.rank, self._store.at(position, _read)))

    def _check(self, state: dict[str, Any]) -> None:
        resuming.check_format(self._context, state["format"], FORMAT)
        then, now = state["signature"], self._signature
        # What was trained of a recipe that has got longer is the same.
        now = {**now, "recipe": now["recipe"][: len(then["recipe"])]}
        if then["names_of_the_examples"] == now["names_of_the_examples"]:
            self._check_order(then, now)
        resuming.check_same(self._context, then, now, "model")

    def _check_order(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        """The same examples, but what the network's numbers stand for is other: it follows from nothing that is set."""
        file = self._context.job.__file__
        if then["order"] != now["order"]:
            raise Failed(
                _(
                    "{file}: classes or columns come in another order than when this run began ({then} then, {now} "
                    "now). They come from a set, or a folder's order, which each start has another way: sort them "
                    "(vocab=sorted(…), cont_names=[…]), and start anew with fresh=true.",
                    file=file,
                    then=then["order"],
                    now=now["order"],
                )
            )
        if then["division"] != now["division"]:
            raise Failed(
                _(
                    "{file}: the examples are divided into training and validation in another way than when this run "
                    "began. Give what divides them a seed, as in RandomSplitter(seed=42), or sort what it divides, "
                    "and start anew with fresh=true.",
                    file=file,
                )
            )

    # -- going on ----------------------------------------------------------------------------------------------

    def is_done(self, stage: int) -> bool:
        """Whether a stage that trains or looks for a rate was finished by an earlier start.

        The last of those is where the checkpoint is restored.
        """
        if stage == self.stage and self._finished:
            self.restore(in_fit=False)
            return True
        return stage < self.stage

    def stage_begins(self, stage: int, first_epoch: int) -> None:
        """A stage that trains or looks for a rate; `first_epoch`: epochs of all stages before it."""
        self._stage, self._first_epoch, self._done = stage, first_epoch, 0

    def restore(self, in_fit: bool = True) -> None:
        """Sets everything to what the checkpoint says, and puts on record that it did."""
        if self._found is None:
            return
        (position, state), self._found = self._found, None
        if self._walked.lacks(state["walked"]):
            self._loop.make_what_a_step_makes(in_fit)
        fastai_state.give_weights(self._learner, state)
        fastai_state.give_besides(self._learner, state)
        # A loader may count its passes: it is asked for its order once more.
        self._walked.give(state["before_order"] or state["walked"])
        self._before_order, self._waiting = state["before_order"], state["walked"] if state["before_order"] else None
        for text in state["notes"]:
            note(self._context, text)
        self._reporter.set_state(state["reporter"])
        resuming.tell(self._context, position, state["steps"], self._started)

    def fit_begins(self, epochs: int) -> int:
        """The first epoch of the stage to be trained, or finished.

        Raises:
            fastai.callback.core.CancelFitException: a callback has ended this stage before the interruption.
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
        """The first step of the epoch to be trained, and whether a callback has ended its training."""
        self._done, self._cancelled = 0, False
        self._reporter.epoch_begins()
        if self._found is not None:
            self._done, self._cancelled = self._found[0].step, self._found[1]["cancelled"]
            self.restore()
        else:
            self._before_order = self._walked.taken("dls")
        return self._done, self._cancelled

    def order_known(self) -> None:
        """The loader is asked: all is as it was when the checkpoint was saved."""
        if self._waiting is not None:
            self._walked.give(self._waiting)
            self._waiting = None

    # -- saving ------------------------------------------------------------------------------------------------

    def trained(self, done: int) -> None:
        """After each batch of training.

        Raises:
            Interrupted: it was asked for, and the state is saved.
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
        """Before validation: an interrupted one is done anew, from the state before it."""
        self._cancelled = cancelled
        # A callback may put other weights in for the validation.
        self._beside = {**self._besides(), **fastai_state.model_weights(self._learner)}

    def validated(self) -> None:
        """After each batch of validation: what is saved is the state before it.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        if self.ranks.interrupted or self._time_is_up():
            self._save(self._position(), beside=self._beside)
        if self.ranks.interrupted:
            self._leave()

    def epoch_ends(self, stopped: bool) -> None:
        """After each epoch, also after one that a callback has ended together with the fit.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        epoch = self._learner.epoch
        finished = len(self._learner.recorder.values) > epoch
        row = self._reporter.epoch_ends(epoch) if finished else {}
        self._done, self._cancelled, self._beside, self._before_order = 0, False, None, {}
        position, best = Position(self._first_epoch + epoch + 1, 0), self._is_best(row)
        outputs.keep_models(self._context, self._learner, position.epoch, best)
        self._save(position, best, beside=self._besides(epoch + 1, stopped))
        if self.ranks.agree():
            self._leave(position)

    def stage_ends(self, epochs: int, may_grow: bool) -> None:
        """After a stage of `epochs` epochs and the callbacks' `after_fit`; 0 for an lr_find. It is never repeated.

        `may_grow`: a longer run may go on from here, so the checkpoint of its last epoch is to stay.
        """
        if may_grow:
            return
        self._save(Position(self._first_epoch + epochs, 0), beside=self._besides(finished=True))

    def wait(self) -> None:
        """Until the last checkpoint is written."""
        self._background.wait()
        self._store.retry()

    def _position(self) -> Position:
        return Position(self._first_epoch + self._learner.epoch, self._done)

    def _time_is_up(self) -> bool:
        minutes = self._settings.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _is_best(self, row: dict[str, Any]) -> bool:
        monitor = self._settings.monitor
        if row and monitor not in row and not self._monitor_missed:
            self._monitor_missed = True
            print(
                _(
                    "checkpoint.monitor={monitor}: no such metric. {nearest}",
                    monitor=monitor,
                    nearest=nearest(monitor, row),
                ),
                file=sys.stderr,
                flush=True,
            )
        if not is_better(row.get(monitor), self._best, self._settings.mode):
            return False
        self._best = row[monitor]
        return True

    def _leave(self, position: Position | None = None) -> None:
        position = position or self._position()
        self._background.wait()
        if position.step:
            self._context.progress.update(epoch=position.epoch + 1, step=position.step)
        # Whoever ends while rank 0 still writes might be taken for dead.
        self.ranks.wait_for_all()
        raise Interrupted

    def _save(self, position: Position, best: bool = False, beside: dict[str, Any] | None = None) -> None:
        """Copies the state here and now, and writes it in the background: rank 0 does, for all.

        `beside`: what `_besides` gave; without it every rank calls this.
        """
        self._saved_at = time.monotonic()
        beside = beside or self._besides()
        if self.ranks.rank:
            return
        state = {**fastai_state.weights(self._learner), **beside}
        state.update(format=FORMAT, signature=self._signature)
        self._background.start(lambda: self._write(position, state, best))

    def _write(self, position: Position, state: dict[str, Any], best: bool) -> None:
        # It counts on event files as long as they are now.
        self._reporter.curves.board.settle()
        self._store.save(position, lambda file: _write(state, file), best)

    def _besides(self, epoch: int | None = None, stopped: bool = False, finished: bool = False) -> dict[str, Any]:
        """All but the weights. Every rank calls this.

        `epoch`: of the stage, how many are done, where that is not the one under way; `stopped`: a callback has ended
        the stage there; `finished`: it is over, and the next one is to come.
        """
        own = {
            **fastai_state.besides(self._learner),
            "walked": self._walked.taken(),
            # Where an epoch is under way, or its validation.
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
            "best": self._best,
            "event_files": self._reporter.curves.board.sizes(),
        }


def _write(state: dict[str, Any], file: IO[bytes]) -> None:
    import torch

    torch.save(state, file)


def _read(file: IO[bytes]) -> dict[str, Any]:
    """Nothing in it can run when it is read."""
    import pickle

    import torch

    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(_("it is no checkpoint of this backend: {error}", error=str(error).splitlines()[0])) from error
    return state
