"""Exact resume of a Keras training: when a checkpoint is saved, and how a run goes on from it.

An interrupted run ends with the same weights, metrics and history, to the bit, as one that was not. Steps that are done
are not computed again: in the epoch that a run goes on in, Keras counts through them while nothing is read or trained.
The ranks of a team decide together, each time that one may decide otherwise than another.

| position | means |
|---|---|
| epoch E, step 0 | E epochs are finished, validated and on record |
| epoch E, step S | S steps of the epoch after them are trained; all of them: its validation is still to come |
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import CheckpointStore, Position, is_better
from truba_runner.training import resuming
from truba_runner.training.backend import Context
from truba_runner.training.background import Background
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.team import Team
from truba_runner.training.keras.loop import callback_state
from truba_runner.training.keras.loop.checkpoint import BesideWeights, Contents
from truba_runner.training.keras.loop.encoding import Encoded
from truba_runner.training.keras.loop.reporter import Reporter
from truba_runner.training.summaries import event_files

if TYPE_CHECKING:
    from truba_runner.training.keras.batches.plan import Plan


class Resume:
    """Saves a training while it goes on, and lets it go on from what was saved. `keras_hooks` calls it."""

    def __init__(
        self,
        context: Context,
        model: Any,
        plan: Plan,
        reporter: Reporter,
        team: Team | None,
        splits: Mapping[str, Any],
    ) -> None:
        """Reads the newest checkpoint; before anything is told to TensorBoard, whose files it may cut.

        `splits`: what `load_data` returned.
        """
        self._started = time.perf_counter()
        self._context, self._model, self._plan, self._reporter = context, model, plan, reporter
        self._team = team
        self._settings = context.experiment.checkpoint
        if self._settings.mode not in ("min", "max"):
            raise Failed(_("checkpoint.mode={mode} is neither min nor max.", mode=self._settings.mode))
        self._store = CheckpointStore(context.run.checkpoints, self._settings.keep)
        self._background = Background()
        self._contents = Contents(context, model, plan, reporter, team, splits)
        self._epoch = self._done = self._skips = 0
        # Whether a step was taken, and an example read.
        self._stepped = self._reads = False
        self._over: BesideWeights
        self._logs: dict[str, float] = {}
        self._before_test: BesideWeights | None = None
        self._saved_at = time.monotonic()
        self._train_function: Any = None
        self._found = self._contents.newest(self._store)
        state = self._found[1] if self._found else {}
        # A run that goes on from another's checkpoint has no best of its own yet. Ranks never do, and must agree.
        self._best: float | None = state.get("best") if team or self._store.has_best() else None
        # Whether all epochs are done, and what is already known of the time after them.
        self.trained: bool = state.get("trained", False)
        self.result: dict[str, Any] = state.get("result", {})
        if context.rank == 0:
            # Without a checkpoint every step is told again.
            event_files.cut(context.run.tensorboard, state.get("event_files", {}))

    # -- going on ----------------------------------------------------------------------------------------------

    @property
    def initial_epoch(self) -> int:
        """The first epoch that is to be trained, or finished, counted from 0."""
        if self._found is None:
            return 0
        position, state = self._found
        return self._context.experiment.train.epochs if state["stop"] and not position.step else position.epoch

    def own_callbacks(self, callbacks: list[Any]) -> None:
        """The config's callbacks, before Keras has its list of all."""
        self._contents.own_callbacks = callbacks

    @property
    def goes_on(self) -> bool:
        """Whether there is a checkpoint that is still to be restored."""
        return self._found is not None

    @property
    def monitor(self) -> str:
        """The metric that says which epoch is the best."""
        return self._settings.monitor

    def train_begin(self, callbacks: list[Any]) -> None:
        """After every callback's own."""
        self._contents.callbacks = callbacks
        callback_state.check(callbacks)
        self._contents.begin()
        if self._found is None:
            self._hold()
        elif not self._found[0].step:
            self.restore()

    def epoch_begin(self, epoch: int) -> None:
        """After every callback's own, which may have set what a checkpoint of the epoch's middle has to set again."""
        self._epoch, self._done = epoch, 0
        if self._found is not None:
            step, state = self._found[0].step, self._found[1]
            self.restore()
            self._done, self._logs = step, state["logs"]
            self._skip_to(step)
        if self._plan.steps_per_epoch is None or not self._reads:
            self._contents.data_begins()
        self._reads = True

    def restore(self) -> None:
        """Sets everything to what the checkpoint says, and puts on record that it did.

        Raises:
            truba_runner.errors.Failed: the checkpoint is another model's, or was trained on other data.
        """
        if self._found is None:
            return
        (position, state), self._found = self._found, None
        if self.trained:
            self._contents.begin()
        self._contents.give_back(state)
        self._plan.set_state(state["plan"])
        resuming.tell(self._context, position, self._plan.steps, self._started, self.trained)
        self._hold()

    def _hold(self) -> None:
        if self._team:
            # A signal that ends one at once, and that another only notes, would leave that one behind.
            self._team.wait_for_all()
        self._context.interruption.hold()

    # -- steps that are done -----------------------------------------------------------------------------------

    @property
    def skipping(self) -> bool:
        """Whether the execution that Keras is about to count is done already, and no callback's business."""
        return self._skips > 0

    def skipped(self) -> None:
        """One of them is counted."""
        self._skips -= 1

    def _skip_to(self, step: int) -> None:
        """Lets Keras count on from the epoch's start, and gives it the batches from `step` on."""
        model, real = self._model, self._model.train_function
        self._skips = -(-step // model.steps_per_execution)
        self._plan.begin(self._epoch, step)
        # Keras' own iterator, where it is for more than an epoch, begins at the step too.
        own = not self._plan.steps_per_epoch and not 0 < self._plan.steps <= step
        iterator = iter(self._batches_from(step)) if own else None

        def train_function(whole_epoch: Any) -> Any:
            return self._logs if self.skipping else real(iterator or whole_epoch)

        self._train_function, model.train_function = real, train_function

    def _batches_from(self, step: int) -> Any:
        batches = self._plan.from_step(step)
        if self._team:
            return self._team.feed(batches, self._plan.steps - step)
        return self._model.distribute_strategy.experimental_distribute_dataset(batches)

    # -- saving ------------------------------------------------------------------------------------------------

    def steps_end(self, done: int, logs: Any) -> None:
        """After every execution that is trained; `done`: steps of the epoch, counted past its end by the last one.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        if not self._stepped:
            self._stepped = True
            self._contents.first_step_done()
        self._logs = logs
        before, self._done = self._done, self._plan.trained(done)
        stop, due = self._asked()
        if stop:
            self._save(Position(self._epoch, self._done))
            self._leave()
        every = self._settings.every_steps
        due = due or (every is not None and self._done // every > before // every)
        if due and not 0 < self._plan.steps <= self._done:
            self._save(Position(self._epoch, self._done))

    def test_begin(self) -> None:
        """Before validation, and before any callback hears of it: an interrupted one is done anew."""
        self._before_test = self._beside_weights()

    def test_steps_end(self) -> None:
        """After every execution of validation: what is saved is the state before it.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        stop, due = self._asked()
        if stop or due:
            self._save(Position(self._epoch, self._done), beside=self._before_test)
        if stop:
            self._leave()

    def epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """After every callback's own, validation included.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        if self._train_function is not None:
            self._model.train_function, self._train_function = self._train_function, None
        self._save(Position(epoch + 1, 0), best=self._is_best(logs))
        if self._asked()[0]:
            self._leave()

    def train_end(self) -> None:
        """The training is over, and its last checkpoint written."""
        self._background.wait()
        self._store.retry()
        self.trained = True

    def is_over(self) -> None:
        """Notes the state that evaluation and prediction start from; before anything else is made of the training."""
        self._over = self._beside_weights()

    @contextmanager
    def after_training(self) -> Iterator[list[Any]]:
        """Around evaluation and prediction, with the callbacks to pass to both.

        Raises:
            Interrupted: it was asked for. What was saved with the last epoch now says that the training is over, and
                holds `result`, which is known by then.
        """
        try:
            yield [attentive(self._context.interruption)]
        except Interrupted:
            self._over.values["result"] = self.result
            self._save(Position(len(self._reporter.rows), 0), beside=self._over)
            self._background.wait()
            raise

    def _asked(self) -> tuple[bool, bool]:
        """Whether to stop, and whether it is time to save: the same answers on every rank."""
        minutes = self._settings.every_minutes
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        stop = self._context.interruption.requested
        return self._team.agree(self._context.interruption, due) if self._team else (stop, due)

    def _is_best(self, logs: dict[str, Any]) -> bool:
        monitor = self._settings.monitor
        if not is_better(logs.get(monitor), self._best, self._settings.mode):
            return False
        self._best = float(logs[monitor])
        return True

    def _leave(self) -> None:
        self._background.wait()
        self._context.progress.update(epoch=self._epoch + 1, step=self._done)
        if self._team:
            # Whoever ends while rank 0 still writes would be taken for dead.
            self._team.part()
        raise Interrupted

    def _save(self, position: Position, best: bool = False, beside: BesideWeights | None = None) -> None:
        """Copies the state here and now, and writes it in the background."""
        mid_epoch = bool(position.step) and not 0 < self._plan.steps <= position.step
        state = self._contents.whole(beside or self._beside_weights(mid_epoch), together=not self.trained)
        if state is not None:
            self._background.start(lambda: self._write(position, state, best))
        self._saved_at = time.monotonic()

    def _write(self, position: Position, state: Encoded, best: bool) -> None:
        # It counts on event files as long as they are now.
        self._reporter.curves.board.settle()
        self._store.save(position, state.write, best)

    def _beside_weights(self, mid_epoch: bool = False) -> BesideWeights:
        known = {"logs": plain(self._logs), "best": self._best, "trained": self.trained, "result": self.result}
        known["plan"] = self._plan.get_state()
        return self._contents.beside_weights(known, mid_epoch)


def attentive(interruption: Interruption) -> Any:
    """A callback for evaluation and prediction after training, which raises `Interrupted` once it is asked for."""
    import keras

    def look(batch: int, logs: Any = None) -> None:
        if interruption.requested:
            raise Interrupted

    callback = keras.callbacks.Callback()
    callback.on_test_batch_end = callback.on_predict_batch_end = look
    return callback


def plain(logs: Any) -> dict[str, Any]:
    """What a step returned, as numbers and arrays that a checkpoint can hold."""
    return {name: _plain(value) for name, value in (logs or {}).items()}


def _plain(value: Any) -> Any:
    import numpy as np

    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    return array if array.ndim else float(array)
