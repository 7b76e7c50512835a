"""Exact resume of a Keras training: what a checkpoint holds, when one is saved, and how a run goes on from it.

A checkpoint holds all that the rest of the run depends on, so that an interrupted run ends with the same weights,
metrics and history, to the bit, as one that was not. Steps that are done are not computed again: in the epoch that a
run goes on in, Keras counts through them while nothing is read or trained.

| position | means |
|---|---|
| epoch E, step 0 | E epochs are finished, validated and on record |
| epoch E, step S | S steps of the epoch after them are trained; all of them: its validation is still to come |
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from truba_runner.backends import Context, event_files, keras_callback_state
from truba_runner.backends.keras_hooks import attentive, flush_event_files, plain
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_reporter import Reporter
from truba_runner.backends.keras_state import decode, encode
from truba_runner.backends.keras_variables import Variables, global_seeds
from truba_runner.background import Background
from truba_runner.checkpoint import CheckpointStore, Position
from truba_runner.errors import Failed
from truba_runner.interrupt import Interrupted

FORMAT = 1


class Resume:
    """Saves a training while it goes on, and lets it go on from what was saved. `keras_hooks` calls it."""

    def __init__(self, context: Context, model: Any, plan: Plan, reporter: Reporter, team: Team | None = None) -> None:
        """Reads the newest checkpoint; before TensorBoard's callback is made, whose files it may cut."""
        self._started = time.perf_counter()
        self._context, self._model, self._plan, self._reporter = context, model, plan, reporter
        self._settings = context.experiment.checkpoint
        self._store = CheckpointStore(context.run.checkpoints, self._settings.keep)
        self._background = Background()
        self._variables = Variables(model)
        self._callbacks: list[Any] = []
        self._epoch = self._done = self._skips = 0
        self._logs: dict[str, float] = {}
        self._before_test: _BesidesWeights | None = None
        self._best: float | None = None
        self._saved_at = time.monotonic()
        self._train_function: Any = None
        if self._settings.mode not in ("min", "max"):
            raise Failed(f"checkpoint.mode={self._settings.mode} is neither min nor max.")
        self._team = team
        # What each node's devices hold beside the weights is not in one process' reach, so a team saves nothing.
        self._found = self._store.newest(decode) if team is None else None
        # What is already known of the time after training.
        self.result: dict[str, Any] = {}
        self.trained = False
        self._open({} if self._found is None else self._found[1])

    def _open(self, state: dict[str, Any]) -> None:
        if state:
            if state["format"] != FORMAT:
                self._refuse(f"its format is {state['format']}, and this version of truba_runner reads {FORMAT}")
            self.trained, self.result = state["trained"], state["result"]
            # A run that goes on from another's checkpoint has no best of its own yet.
            self._best = state["best"] if self._store.has_best() else None
        if self._context.rank == 0:
            # Without a checkpoint every step is told again.
            event_files.cut(self._context.run.tensorboard, state.get("event_files", {}))

    # -- going on ----------------------------------------------------------------------------------------------

    @property
    def initial_epoch(self) -> int:
        """The first epoch that is to be trained, or finished, counted from 0."""
        if self._found is None:
            return 0
        position, state = self._found
        return self._context.experiment.train.epochs if state["stop"] and not position.step else position.epoch

    def train_begin(self, callbacks: list[Any]) -> None:
        """After every callback's own."""
        self._callbacks = callbacks
        keras_callback_state.check(callbacks)
        if self._found is None:
            self._context.interruption.hold()
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

    def restore(self) -> None:
        """Sets everything to what the checkpoint says, and puts on record that it did.

        Raises:
            truba_runner.errors.Failed: the checkpoint is another model's, or was trained on other data.
        """
        if self._found is None:
            return
        import numpy as np

        (position, state), self._found = self._found, None
        self._build_and_check(state["signature"])
        self._variables.assign(state["variables"])
        for seed, array in zip(global_seeds(create=bool(state["seeds"])), state["seeds"], strict=False):
            seed.assign(array)
        keras_callback_state.restore(self._callbacks, state["callbacks"])
        self._reporter.set_state(state["reporter"])
        self._model.stop_training = state["stop"]
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])
        self._tell(position)
        self._context.interruption.hold()

    def _tell(self, position: Position) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        where = f"epoch {position.epoch + 1}, step {position.step} of {self._plan.steps}"
        where = "the end of the training" if self.trained else where
        print(f"goes on from {where}; restored in {seconds} s", flush=True)
        event = {"event": "restored", "time": time.time(), "seconds": seconds}
        if self._context.rank == 0:
            # Where the disk is full this one record is not worth the run.
            with suppress(OSError):
                self._context.run.append_submission({**event, "position": [position.epoch, position.step]})

    def _build_and_check(self, saved: dict[str, Any]) -> None:
        import keras

        model = self._model
        if self._signature()["variables"] != saved["variables"]:
            # Keras makes metrics, the optimizer's variables and some models' weights in the first step only.
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(next(iter(self._plan.dataset)))
            model.test_on_batch(x, y, sample_weight)
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        now = self._signature()
        for name, value in now.items():
            if name != "variables" and value != saved[name]:
                self._refuse(f"{name.replace('_', ' ')} was {saved[name]} then and is {value} now")
        then, now = saved["variables"], now["variables"]
        for index in range(max(len(then), len(now))):
            pair = [", ".join(map(str, side[index])) if index < len(side) else "nothing" for side in (then, now)]
            if pair[0] != pair[1]:
                self._refuse(f"where it has {pair[0]}, the model has {pair[1]} (name, shape, dtype)")

    def _signature(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to mean the same."""
        devices = self._model.distribute_strategy.num_replicas_in_sync
        return {"devices": devices, **self._plan.signature, "variables": self._variables.signature()}

    def _refuse(self, reason: str) -> None:
        raise Failed(
            f"The newest checkpoint in {self._context.run.checkpoints} is of another training: {reason}. Take the "
            "change back and submit again, or start anew beside it with fresh=true."
        )

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
        batches = self._plan.from_step(step) if step < self._plan.steps else None
        iterator = iter(model.distribute_strategy.experimental_distribute_dataset(batches)) if batches else None

        def train_function(whole_epoch: Any) -> Any:
            return self._logs if self.skipping else real(iterator)

        self._train_function, model.train_function = real, train_function

    # -- saving ------------------------------------------------------------------------------------------------

    def steps_end(self, done: int, logs: Any) -> None:
        """After every execution that is trained; `done`: steps of the epoch, counted past its end by the last one.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        self._logs = logs
        if self._team or not self._plan.counted:
            self._leave_unsaved()
            return
        before, self._done = self._done, min(done, self._plan.steps)
        if self._context.interruption.requested:
            self._save(Position(self._epoch, self._done))
            self._leave()
        every = self._settings.every_steps
        by_steps = every is not None and self._done // every > before // every
        if self._done < self._plan.steps and (by_steps or self._time_is_up()):
            self._save(Position(self._epoch, self._done))

    def test_begin(self) -> None:
        """Before validation, and before any callback hears of it: an interrupted one is done anew."""
        self._before_test = self._besides_weights()

    def test_steps_end(self) -> None:
        """After every execution of validation: what is saved is the state before it.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        if self._team or not self._plan.counted:
            self._leave_unsaved()
            return
        requested = self._context.interruption.requested
        if requested or self._time_is_up():
            self._save(Position(self._epoch, self._done), besides=self._before_test)
        if requested:
            self._leave()

    def epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """After every callback's own, validation included.

        Raises:
            Interrupted: it was asked for, and the state is saved.
        """
        if self._train_function is not None:
            self._model.train_function, self._train_function = self._train_function, None
        if self._team:
            return
        self._save(Position(epoch + 1, 0), best=self._is_best(logs))
        if self._context.interruption.requested:
            self._leave()

    def train_end(self) -> None:
        """The training is over, and its last checkpoint written."""
        self._background.wait()
        self.trained = True

    @contextmanager
    def after_training(self) -> Iterator[list[Any]]:
        """Around evaluation and prediction, with the callbacks to pass to both.

        Raises:
            Interrupted: it was asked for. What was saved with the last epoch now says that the training is over, and
                holds `result`, which is known by then.
        """
        before = self._besides_weights()
        try:
            yield [attentive(self._context.interruption)]
        except Interrupted:
            before.values["result"] = self.result
            self._save(Position(len(self._reporter.rows), 0), besides=before)
            self._background.wait()
            raise

    def _time_is_up(self) -> bool:
        minutes = self._settings.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _is_best(self, logs: dict[str, Any]) -> bool:
        value = logs.get(self._settings.monitor)
        if value is None or value != value:
            return False
        value = float(value)
        sign = -1 if self._settings.mode == "max" else 1
        best = self._best is None or sign * value < sign * self._best
        self._best = value if best else self._best
        return best

    def _leave_unsaved(self) -> None:
        """On several nodes nothing is saved, and in an epoch of unknown length nothing but its beginning."""
        interruption = self._context.interruption
        if self._team.agree(interruption) if self._team else interruption.requested:
            self._background.wait()
            raise Interrupted

    def _leave(self) -> None:
        self._background.wait()
        self._context.progress.update(epoch=self._epoch + 1, step=self._done)
        raise Interrupted

    def _save(self, position: Position, best: bool = False, besides: _BesidesWeights | None = None) -> None:
        """Copies the state here and now, and writes it in the background."""
        if self._team:
            return
        besides = besides or self._besides_weights()
        variables = self._variables.read()
        for index, array in besides.small.items():
            variables[index] = array
        state = encode({**besides.values, "signature": self._signature(), "variables": variables})
        self._background.start(lambda: self._store.save(position, state.write, best))
        self._saved_at = time.monotonic()

    def _besides_weights(self) -> _BesidesWeights:
        import numpy as np

        flush_event_files(self._callbacks)
        values = {
            "format": FORMAT,
            "seeds": [seed.numpy() for seed in global_seeds(create=False)],
            "callbacks": keras_callback_state.states(self._callbacks),
            "reporter": self._reporter.get_state(),
            "stop": bool(self._model.stop_training),
            "logs": plain(self._logs),
            "random": random.getstate(),
            "numpy": np.random.get_state(),
            "best": self._best,
            "event_files": event_files.sizes(self._context.run.tensorboard),
            "trained": self.trained,
            "result": self.result,
        }
        return _BesidesWeights(values, self._variables.read_small())


@dataclass(frozen=True)
class _BesidesWeights:
    """What of a state evaluation changes; `small`: variables, by their place in the signature."""

    values: dict[str, Any]
    small: dict[int, Any]
