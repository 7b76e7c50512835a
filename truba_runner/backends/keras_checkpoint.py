"""What a checkpoint of a Keras training holds: all that the rest of the run depends on, read, compared, set again.

With a team it is one file too. Rank 0 writes what every rank has in common, and of the others what is theirs alone:
the values of their devices, and their streams of random numbers. What callbacks remember is rank 0's on every rank.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.backends import Context, going_on, keras_callback_state
from truba_runner.backends.keras_hooks import flush_event_files
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_reporter import Reporter
from truba_runner.backends.keras_state import Encoded, decode, encode
from truba_runner.backends.keras_variables import Variables, generator_states, global_seeds
from truba_runner.checkpoint import CheckpointStore, Position

FORMAT = 4
# Of what is no variable, what each rank has by itself.
_OWN = ("seeds", "generators", "random", "numpy")


@dataclass(frozen=True)
class BesideWeights:
    """What of a state evaluation changes; `small`: variables, by their place in the signature."""

    values: dict[str, Any]
    small: dict[int, Any]


class Contents:
    """A training, seen as what a checkpoint holds of it."""

    def __init__(self, context: Context, model: Any, plan: Plan, reporter: Reporter, team: Team | None) -> None:
        """`callbacks` are set once Keras has its list of them."""
        self._context, self._model, self._plan, self._reporter, self._team = context, model, plan, reporter, team
        self.variables = Variables(model)
        self.callbacks: list[Any] = []
        # Of each rank but the first: its own part, as it was when the training was last saved.
        self._others: list[Any] = []

    # -- taking ------------------------------------------------------------------------------------------------

    def beside_weights(self, known: Mapping[str, Any]) -> BesideWeights:
        """A copy of what evaluation changes, with what else is `known` of the run."""
        import numpy as np

        flush_event_files(self.callbacks)
        values = {
            "format": FORMAT,
            "seeds": [seed.numpy() for seed in global_seeds(create=False)],
            "generators": [state.numpy() for state in self._generators()],
            "callbacks": keras_callback_state.states(self.callbacks),
            "reporter": self._reporter.get_state(),
            "stop": bool(self._model.stop_training),
            "random": random.getstate(),
            "numpy": np.random.get_state(),
            "event_files": self._reporter.curves.board.sizes(),
            **known,
        }
        return BesideWeights(values, self.variables.read_small())

    def whole(self, beside: BesideWeights, together: bool = True) -> Encoded | None:
        """All of it, for rank 0 to write; None on the others.

        `together`: every rank of a team calls this, else rank 0 alone, and the others' part is that of the last time.
        """
        variables = self.variables.read()
        for index, array in beside.small.items():
            variables[index] = array
        if self._team and together:
            own = {"variables": {index: variables[index] for index in self.variables.own()}}
            parts = self._team.gather(_as_bytes(own | {name: beside.values[name] for name in _OWN}))
            self._others = [_as_array(part) for part in parts[1:]]
        if self._context.rank:
            return None
        return encode({**beside.values, "signature": self._signature(), "variables": variables, "others": self._others})

    def _generators(self) -> list[Any]:
        # The callbacks last: they are missing where all that is left to do is to evaluate.
        return generator_states([*self._model._flatten_layers(), self._context.job, *self.callbacks])

    # -- giving back -------------------------------------------------------------------------------------------

    def newest(self, store: CheckpointStore) -> tuple[Position, dict[str, Any]] | None:
        """The newest checkpoint, the same one on every rank, as this rank needs it.

        Raises:
            truba_runner.errors.Failed: it is another version's.
        """
        found = store.newest(decode) if self._context.rank == 0 else None
        if self._team:
            found = _same_as_rank_0(self._team, store, found)
        if found is None:
            return None
        position, state = found
        going_on.check_format(self._context, state["format"], FORMAT)
        self._others = state["others"]
        if 0 < self._context.rank <= len(self._others):
            own = decode(io.BytesIO(self._others[self._context.rank - 1].tobytes()))
            for index, array in own.pop("variables").items():
                state["variables"][index] = array
            state.update(own)
        return position, state

    def give_back(self, state: dict[str, Any]) -> None:
        """Sets everything to what the checkpoint says.

        Raises:
            truba_runner.errors.Failed: the checkpoint is another model's, or was trained on other data.
        """
        import numpy as np

        self._build_and_check(state["signature"])
        self.variables.assign(state["variables"])
        for seed, array in zip(global_seeds(create=bool(state["seeds"])), state["seeds"], strict=False):
            seed.assign(array)
        for generator, array in zip(self._generators(), state["generators"], strict=False):
            generator.assign(array)
        keras_callback_state.restore(self.callbacks, state["callbacks"])
        self._reporter.set_state(state["reporter"])
        self._model.stop_training = state["stop"]
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])

    def _build_and_check(self, saved: dict[str, Any]) -> None:
        if self._signature()["variables"] != saved["variables"]:
            build(self._model, self._plan, self._team)
        going_on.check_same(self._context, saved, self._signature(), "variables")

    def _signature(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to mean the same."""
        return {
            "devices": self._model.distribute_strategy.num_replicas_in_sync,
            "nodes": self._context.tasks,
            **self._plan.signature,
            "variables": self.variables.signature(),
        }


def build(model: Any, plan: Plan, team: Team | None) -> None:
    """Makes what Keras would make in the first step only: metrics, the optimizer's variables, some models' weights."""
    import keras

    batch = plan.example()
    if team:
        team.build(model, batch)
    else:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        model.test_on_batch(x, y, sample_weight)
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)


def _same_as_rank_0(
    team: Team, store: CheckpointStore, found: tuple[Position, dict[str, Any]] | None
) -> tuple[Position, dict[str, Any]] | None:
    """Rank 0 alone looks which is the newest: another rank may see files that it has passed over, or not see all."""
    exists, epoch, step = team.from_rank_0([1, found[0].epoch, found[0].step] if found else [0, 0, 0])
    if not exists:
        return None
    position = Position(epoch, step)
    return found or (position, store.at(position, decode))


def _as_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    encode(value).write(file)
    return file.getvalue()


def _as_array(data: bytes) -> Any:
    import numpy as np

    return np.frombuffer(data, np.uint8)
