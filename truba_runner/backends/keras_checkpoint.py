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
from truba_runner.backends.keras_build import build, is_built
from truba_runner.backends.keras_hooks import flush_event_files
from truba_runner.backends.keras_nodes import Team
from truba_runner.backends.keras_order import other_order
from truba_runner.backends.keras_plan import Plan
from truba_runner.backends.keras_reporter import Reporter
from truba_runner.backends.keras_state import Encoded, decode, encode
from truba_runner.backends.keras_variables import Variables, global_seeds
from truba_runner.backends.keras_walk import evaluates_with_own_code, walk_data, walk_training
from truba_runner.backends.walk import Found
from truba_runner.backends.walk_report import Unsaved, refuse_lost
from truba_runner.backends.walk_state import Start, put, read, same, write
from truba_runner.checkpoint import CheckpointStore, Position
from truba_runner.language import _

FORMAT = 4
# Of what is no variable, what each rank has by itself.
_OWN = ("seeds", "streams", "random", "numpy")


@dataclass(frozen=True)
class BesideWeights:
    """What of a state evaluation changes; `small`: variables, by their paths."""

    values: dict[str, Any]
    small: dict[str, Any]
    found: Found


class Contents:
    """A training, seen as what a checkpoint holds of it."""

    def __init__(
        self,
        context: Context,
        model: Any,
        plan: Plan,
        reporter: Reporter,
        team: Team | None,
        splits: Mapping[str, Any],
    ) -> None:
        """`splits`: what `load_data` returned. `callbacks` are set once Keras has its list of them."""
        self._context, self._model, self._plan, self._reporter, self._team = context, model, plan, reporter, team
        self._splits = splits
        # All of Keras' list, and of those the config's.
        self.callbacks: list[Any] = []
        self.own_callbacks: list[Any] = []
        self._unsaved = Unsaved(context.experiment.checkpoint.strict)
        self._start: Start | None = None
        self._data_start: Start | None = None
        # The data's state when an epoch's first example was read; its middle is reached by reading from there.
        self._data_at_begin: dict[str, Any] = {}
        # Of each rank but the first: its own part, as it was when the training was last saved.
        self._others: list[Any] = []

    def begin(self) -> None:
        """Notes how this start finds the training, and says what of it cannot be saved; before anything is restored.

        Raises:
            truba_runner.errors.Failed: the config has `checkpoint.strict`, and there is such a thing.
        """
        found, data = self._walk(), self._walk_data()
        self._start, self._data_start = Start(found), Start(data)
        self._unsaved.tell({**found.unsaved, **data.unsaved})
        self._tell_of_order(self._splits.get("train"))

    def _tell_of_order(self, split: Any) -> None:
        import tensorflow as tf

        once = bool(self._context.experiment.train.steps_per_epoch)
        if isinstance(split, tf.data.Dataset) and (reason := other_order(split, one_iteration=once)):
            self._unsaved.tell_of_order("data.train", _(reason))

    def first_step_done(self) -> None:
        """Notes what the first step has made."""
        if self._start is not None:
            self._start.now_also(self._walk())

    def data_begins(self) -> None:
        """Notes the data's state, before an epoch's examples are read."""
        self._data_at_begin = self._data_state()

    # -- taking ------------------------------------------------------------------------------------------------

    def beside_weights(self, known: Mapping[str, Any], mid_epoch: bool = False) -> BesideWeights:
        """A copy of what evaluation changes, with what else is `known` of the run.

        `mid_epoch`: the epoch's examples are being read.

        Raises:
            truba_runner.errors.Failed: as `begin`, for what has come since.
        """
        import numpy as np

        flush_event_files(self.callbacks)
        found, start = self._walk(), self._start
        if start is not None:
            self._unsaved.tell_of_made(start.made_since(found))
            self._unsaved.tell(found.unsaved)
        values = {
            "format": FORMAT,
            "seeds": [seed.numpy() for seed in global_seeds(create=False)],
            "streams": _streams(found),
            "values": start.changed(found) if start else {},
            "links": start.moved(found) if start else {},
            "data": self._data_to_resume_from(mid_epoch),
            "callbacks": keras_callback_state.states(self.callbacks),
            "reporter": self._reporter.get_state(),
            "stop": bool(self._model.stop_training),
            "random": random.getstate(),
            "numpy": np.random.get_state(),
            "event_files": self._reporter.curves.board.sizes(),
            **known,
        }
        all_of_them = evaluates_with_own_code(self._model, self.callbacks)
        return BesideWeights(values, Variables(self._model, found).read(small=not all_of_them), found)

    def whole(self, beside: BesideWeights, together: bool = True) -> Encoded | None:
        """All of it, for rank 0 to write; None on the others.

        `together`: every rank of a team calls this, else rank 0 alone, and the others' part is that of the last time.
        """
        variables = Variables(self._model, beside.found)
        pieces = {**variables.read(), **beside.small}
        if self._team and together:
            own = {"pieces": {path: pieces[path] for path in variables.own()}}
            parts = self._team.gather(_as_bytes(own | {name: beside.values[name] for name in _OWN}))
            self._others = [_as_array(part) for part in parts[1:]]
        if self._context.rank:
            return None
        signature = self._signature(variables)
        return encode({**beside.values, "signature": signature, "pieces": pieces, "others": self._others})

    def _walk(self) -> Found:
        known = self._start.paths if self._start else None
        return walk_training(self._context, self._model, self.own_callbacks, known)

    def _walk_data(self) -> Found:
        return walk_data(self._splits, self._model, self._data_start.paths if self._data_start else None)

    def _data_to_resume_from(self, mid_epoch: bool) -> dict[str, Any]:
        # One iterator over all epochs, and an epoch's middle, are mostly reached by reading from their beginning.
        if self._plan.steps_per_epoch is not None or (mid_epoch and self._plan.rereads):
            return self._data_at_begin
        now = self._data_state()
        if mid_epoch:
            before = self._data_at_begin["streams"]
            drawn = [path for path, state in now["streams"].items() if not same(state, before.get(path))]
            self._unsaved.tell_of_drawn_ahead(drawn)
        return now

    def _data_state(self) -> dict[str, Any]:
        found = self._walk_data()
        values = self._data_start.changed(found) if self._data_start else {}
        return {"streams": _streams(found), "values": values}

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
            state["pieces"].update(own.pop("pieces"))
            state.update(own)
        return position, state

    def give_back(self, state: dict[str, Any]) -> None:
        """Sets everything to what the checkpoint says.

        Raises:
            truba_runner.errors.Failed: the checkpoint is another model's, or was trained on other data.
        """
        import numpy as np

        # Once the training is over, callbacks are not made any more.
        gone = () if self.callbacks else ("callbacks",)
        found = self._built_and_checked(state["signature"], gone)
        lost = put(found, _without(state["values"], gone), _without(state["links"], gone))
        lost += _write_streams(found, _without(state["streams"], gone))
        Variables(self._model, found).assign(_without(state["pieces"], gone))
        data = self._walk_data()
        lost += put(data, state["data"].get("values", {}), {}) + _write_streams(data, state["data"].get("streams", {}))
        refuse_lost(lost)
        for seed, array in zip(global_seeds(create=bool(state["seeds"])), state["seeds"], strict=False):
            seed.assign(array)
        keras_callback_state.restore(self.callbacks, state["callbacks"])
        self._reporter.set_state(state["reporter"])
        self._model.stop_training = state["stop"]
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])

    def _built_and_checked(self, saved: dict[str, Any], gone: tuple[str, ...]) -> Found:
        saved = {**saved, "variables": [one for one in saved["variables"] if not one[0].startswith(gone)]}
        found = self._walk()
        if Variables(self._model, found).signature() != saved["variables"] or not is_built(self._model):
            build(self._context, self._model, self._plan, self._team)
            found = self._walk()
        going_on.check_same(self._context, saved, self._signature(Variables(self._model, found)), "variables")
        return found

    def _signature(self, variables: Variables) -> dict[str, Any]:
        """What has to be the same for a checkpoint to mean the same."""
        return {
            "devices": self._model.distribute_strategy.num_replicas_in_sync,
            "nodes": self._context.tasks,
            **self._plan.signature,
            "variables": variables.signature(),
        }


def _without(part: Mapping[str, Any], gone: tuple[str, ...]) -> dict[str, Any]:
    return {path: value for path, value in part.items() if not path.startswith(gone)}


def _streams(found: Found) -> dict[str, Any]:
    return {path: read(piece) for path, piece in found.pieces.items() if piece.kind != "variable"}


def _write_streams(found: Found, saved: Mapping[str, Any]) -> list[str]:
    """Returns the paths of those that are not there."""
    for path, value in saved.items():
        if path in found.pieces:
            write(found.pieces[path], value)
    return [path for path in saved if path not in found.pieces]


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
