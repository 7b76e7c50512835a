"""Exact resume of a Keras training: when a checkpoint is saved, and how a run resumes from it.

An interrupted run ends with the same weights, metrics and history, to the bit, as an uninterrupted one. Finished steps
are not computed again: in the epoch where a run resumes, Keras counts through them while nothing is read or trained.
The ranks of a job decide together wherever they could decide differently.

| position | means |
|---|---|
| epoch E, step 0 | E epochs are finished, validated and recorded |
| epoch E, step S | S steps of the next epoch are trained; if those are all, its validation has not finished |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from truba_runner.errors import Failed
from truba_runner.runs.checkpoints import Position
from truba_runner.training import resuming
from truba_runner.training.backend import Context
from truba_runner.training.interrupt import Interrupted, Interruption
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.internals import train_function
from truba_runner.training.keras.loop import callback_state
from truba_runner.training.keras.loop.checkpoint import BesideWeights, Contents
from truba_runner.training.keras.loop.reporter import Reporter
from truba_runner.training.ranks.group import Agreement
from truba_runner.training.saver import Best, Saver
from truba_runner.training.summaries import event_files


class Resume:
    """The saving and resuming of one training; `loop.callback_list` calls it."""

    def __init__(
        self, context: Context, model: Any, plan: Plan, reporter: Reporter, nodes: Nodes, splits: Mapping[str, Any]
    ) -> None:
        """Read the newest checkpoint; before anything is written to TensorBoard's event files, which this may cut.

        `splits`: what `load_data` returned.
        """
        self._started = time.perf_counter()
        self._context, self._model, self._plan, self._reporter = context, model, plan, reporter
        self._nodes = nodes
        self._settings = context.experiment.checkpoint
        if self._settings.mode not in ("min", "max"):
            raise Failed("checkpoint.mode={mode} is neither min nor max.", mode=self._settings.mode)
        self._saver = Saver(context, reporter.curves.writer.settle)
        self._contents = Contents(context, model, plan, reporter, nodes, splits)
        self._epoch = self._done = self._skips = 0
        # Whether this start has trained a step, and begun an epoch.
        self._stepped = self._reads = False
        self._over: BesideWeights
        self._logs: dict[str, float] = {}
        self._before_test: BesideWeights | None = None
        self._stop_skipping: Callable[[], None] = lambda: None
        self._found = self._contents.newest(self._saver.store)
        state = self._found[1] if self._found else {}
        # A run that starts from another run's checkpoint has no best yet. Several nodes never do so, and must agree.
        has_best = nodes.together or self._saver.store.has_best()
        self._best = Best(self._settings, state.get("best") if has_best else None)
        # Whether all epochs are trained, and the result that evaluation and prediction have filled in so far.
        self.trained: bool = state.get("trained", False)
        self.result: dict[str, Any] = state.get("result", {})
        if context.rank == 0:
            # Without a checkpoint every step is trained and written again.
            event_files.cut(context.run.tensorboard, state.get("event_files", {}))

    # -- going on ----------------------------------------------------------------------------------------------

    @property
    def initial_epoch(self) -> int:
        """The first epoch to train, or to finish, counted from 0."""
        if self._found is None:
            return 0
        position, state = self._found
        return self._context.experiment.train.epochs if state["stop"] and not position.step else position.epoch

    def own_callbacks(self, callbacks: list[Any]) -> None:
        """Set the config's callbacks, before Keras has its list of all."""
        self._contents.own_callbacks = callbacks

    @property
    def resumes(self) -> bool:
        """Whether a checkpoint is still to be restored."""
        return self._found is not None

    @property
    def monitor(self) -> str:
        """The metric that decides which epoch is the best."""
        return self._settings.monitor

    def train_begin(self, callbacks: list[Any]) -> None:
        """Record the start, or restore a checkpoint at an epoch's end; after every callback's `on_train_begin`."""
        self._contents.callbacks = callbacks
        callback_state.check(callbacks)
        self._contents.begin()
        if self._found is None:
            self._nodes.hold()
        elif not self._found[0].step:
            self.restore()

    def epoch_begin(self, epoch: int) -> None:
        """Restore a mid-epoch checkpoint; after all callbacks' `on_epoch_begin`, which may change what it restores."""
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
        """Restore the checkpoint, if one is still to be restored, and record that it was.

        Raises:
            truba_runner.errors.Failed: the checkpoint is of another model, or of other data.
        """
        if self._found is None:
            return
        (position, state), self._found = self._found, None
        if self.trained:
            self._contents.begin()
        self._contents.give_back(state)
        self._plan.set_state(state["plan"])
        resuming.tell(self._context, position, self._plan.steps, self._started, self.trained)
        self._nodes.hold()

    # -- steps that are done -----------------------------------------------------------------------------------

    @property
    def skipping(self) -> bool:
        """Whether the execution that Keras is about to count is already done, and hidden from callbacks."""
        return self._skips > 0

    def skipped(self) -> None:
        """Count one skipped execution."""
        self._skips -= 1

    def _skip_to(self, step: int) -> None:
        """Let Keras count through the steps before `step` without training, then train on the batches from there."""
        self._skips = -(-step // self._model.steps_per_execution)
        self._plan.begin(self._epoch, step)
        # Keras' own iterator, where it spans more than an epoch, begins at `step` already.
        own = not self._plan.steps_per_epoch and not 0 < self._plan.steps <= step
        iterator = iter(self._batches_from(step)) if own else None

        def skip_or_take(execution: train_function.Execution, whole_epoch: Any) -> Any:
            return self._logs if self.skipping else execution(iterator or whole_epoch)

        self._stop_skipping = train_function.wrap(self._model, skip_or_take)

    def _batches_from(self, step: int) -> Any:
        return self._nodes.feed(self._plan.from_step(step), self._plan.steps - step)

    # -- saving ------------------------------------------------------------------------------------------------

    def steps_end(self, done: int, logs: Any) -> None:
        """Save if it is time, after each trained execution; `done`: Keras' count of steps, past the end for the last.

        Raises:
            Interrupted: a stop was requested, and the state is saved.
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
        """Copy the state before validation and its callbacks: an interrupted validation is repeated as a whole."""
        self._before_test = self._beside_weights()

    def test_steps_end(self) -> None:
        """Save the state from before validation if it is time; after each execution of validation.

        Raises:
            Interrupted: a stop was requested, and the state is saved.
        """
        stop, due = self._asked()
        if stop or due:
            self._save(Position(self._epoch, self._done), beside=self._before_test)
        if stop:
            self._leave()

    def epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Save after each epoch, its validation, and every callback's `on_epoch_end`.

        Raises:
            Interrupted: a stop was requested, and the state is saved.
        """
        self._stop_skipping()
        self._stop_skipping = lambda: None
        self._save(Position(epoch + 1, 0), best=self._best.improved_by(logs))
        if self._asked().stop:
            self._leave()

    def train_end(self) -> None:
        """Wait until the last checkpoint is written, and mark the training as finished."""
        self._saver.finish()
        self.trained = True

    def is_over(self) -> None:
        """Copy the state that evaluation and prediction start from; directly after the training."""
        self._over = self._beside_weights()

    @contextmanager
    def after_training(self) -> Iterator[list[Any]]:
        """Run evaluation and prediction in this context; it yields the callbacks to pass to both.

        Raises:
            Interrupted: a stop was requested. The last epoch's checkpoint was written again: it now says that the
                training is finished, and holds the `result` so far.
        """
        try:
            yield [attentive(self._context.interruption)]
        except Interrupted:
            self._over.values["result"] = self.result
            self._save(Position(len(self._reporter.rows), 0), beside=self._over)
            self._saver.background.wait()
            raise

    def _asked(self) -> Agreement:
        """Return whether to stop, and whether it is time to save; the same on every rank."""
        return self._nodes.agree(self._saver.time_is_up())

    def _leave(self) -> None:
        self._saver.background.wait()
        self._context.progress.update(epoch=self._epoch + 1, step=self._done)
        # A rank that exits while rank 0 still writes would be taken for dead.
        self._nodes.part()
        raise Interrupted

    def _save(self, position: Position, best: bool = False, beside: BesideWeights | None = None) -> None:
        """Copy the state now, and write it in the background."""
        mid_epoch = bool(position.step) and not 0 < self._plan.steps <= position.step
        state = self._contents.whole(beside or self._beside_weights(mid_epoch), together=not self.trained)
        self._saver.save(position, state.write if state else None, best)

    def _beside_weights(self, mid_epoch: bool = False) -> BesideWeights:
        known = {"logs": plain(self._logs), "best": self._best.value, "trained": self.trained, "result": self.result}
        known["plan"] = self._plan.get_state()
        return self._contents.beside_weights(known, mid_epoch)


def attentive(interruption: Interruption) -> Any:
    """Return a callback for evaluation and prediction that raises `Interrupted` once a stop is requested."""
    import keras

    def look(batch: int, logs: Any = None) -> None:
        if interruption.requested:
            raise Interrupted

    callback = keras.callbacks.Callback()
    callback.on_test_batch_end = callback.on_predict_batch_end = look
    return callback


def plain(logs: Any) -> dict[str, Any]:
    """Return a step's logs as numbers and arrays that a checkpoint can hold."""
    return {name: _plain(value) for name, value in (logs or {}).items()}


def _plain(value: Any) -> Any:
    import numpy as np

    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    return array if array.ndim else float(array)
