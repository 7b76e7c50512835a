"""Collect, compare and restore the content of a checkpoint: all state that the remaining training depends on.

Several nodes write one file too. Rank 0 writes what all ranks share, and the other ranks' own parts: the values on
their devices and their random streams. The callbacks' state is rank 0's on every rank.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.language import _
from truba_runner.log import info
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.training import resuming
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.internals.private_names import event_writers, global_seeds, is_built
from truba_runner.training.keras.loop import callback_state
from truba_runner.training.keras.loop.build import build
from truba_runner.training.keras.loop.encoding import Encoded, decode, encode
from truba_runner.training.keras.loop.order import other_order
from truba_runner.training.keras.loop.reporter import Reporter
from truba_runner.training.keras.loop.variables import Variables
from truba_runner.training.keras.loop.walk import evaluates_with_own_code, walk_data, walk_training
from truba_runner.training.ranks import checkpoints
from truba_runner.training.walk.objects import Found
from truba_runner.training.walk.report import DRAWN_AHEAD, MADE_LATER, OTHER_ORDER, Unsaved, refuse_lost
from truba_runner.training.walk.state import Start, put, read, same, write

FORMAT = 4
# Parts of the state, variables aside, that differ between ranks.
_OWN = ("seeds", "streams", "random", "numpy")


@dataclass(frozen=True)
class BesideWeights:
    """A copy of the state that evaluation may change; `small`: the variables among it, by path."""

    values: dict[str, Any]
    small: dict[str, Any]
    found: Found


class Contents:
    """The content of a training's checkpoints."""

    def __init__(
        self, context: Context, model: Any, plan: Plan, reporter: Reporter, nodes: Nodes, splits: Mapping[str, Any]
    ) -> None:
        """`splits`: what `load_data` returned. The attribute `callbacks` is set once Keras has its list."""
        self._context, self._model, self._plan, self._reporter, self._nodes = context, model, plan, reporter, nodes
        self._splits = splits
        # Keras' whole list, and the config's callbacks in it.
        self.callbacks: list[Any] = []
        self.own_callbacks: list[Any] = []
        self._unsaved = Unsaved(context.experiment.checkpoint.strict)
        self._start: Start | None = None
        self._data_start: Start | None = None
        # The data's state before an epoch's first example; a resume in mid-epoch rereads the data from there.
        self._data_at_begin: dict[str, Any] = {}
        # The own part of each rank but 0, encoded, as of the last save during training.
        self._others: list[Any] = []

    def begin(self) -> None:
        """Record the state at this start, before anything is restored, and report what of it cannot be saved.

        Raises:
            truba_runner.errors.Failed: something cannot be saved, and `checkpoint.strict` is set.
        """
        found, data = self._walk(), self._walk_data()
        self._start, self._data_start = Start(found), Start(data)
        self._unsaved.report({**found.unsaved, **data.unsaved})
        self._report_order(self._splits.get("train"))

    def _report_order(self, split: Any) -> None:
        import tensorflow as tf

        once = bool(self._context.experiment.train.steps_per_epoch)
        if isinstance(split, tf.data.Dataset) and (reason := other_order(split, one_iteration=once)):
            self._unsaved.report({"data.train": _(reason)}, OTHER_ORDER)

    def first_step_done(self) -> None:
        """Record the objects that the first step has made."""
        if self._start is not None:
            self._start.now_also(self._walk())

    def data_begins(self) -> None:
        """Record the data's state before an epoch's examples are read."""
        self._data_at_begin = self._data_state()

    # -- taking ------------------------------------------------------------------------------------------------

    def beside_weights(self, known: Mapping[str, Any], mid_epoch: bool = False) -> BesideWeights:
        """Copy what evaluation may change, and add the values `known`.

        `mid_epoch`: the epoch's examples are being read.

        Raises:
            truba_runner.errors.Failed: as `begin`, for objects made since.
        """
        import numpy as np

        flush_event_files(self.callbacks)
        walked, start = self._walk(), self._start
        if start is not None:
            self._unsaved.report(start.made_since(walked), MADE_LATER)
            self._unsaved.report(walked.unsaved)
        values = {
            "format": FORMAT,
            "seeds": [seed.numpy() for seed in global_seeds(create=False)],
            "streams": _streams(walked),
            "values": start.changed(walked) if start else {},
            "links": start.moved(walked) if start else {},
            "data": self._data_to_resume_from(mid_epoch),
            "callbacks": callback_state.states(self.callbacks),
            "reporter": self._reporter.get_state(),
            "stop": bool(self._model.stop_training),
            "random": random.getstate(),
            "numpy": np.random.get_state(),
            "event_files": self._reporter.curves.writer.sizes(),
            **known,
        }
        all_of_them = evaluates_with_own_code(self._model, self.callbacks)
        return BesideWeights(values, Variables(self._model, walked).read(small=not all_of_them), walked)

    def whole(self, beside: BesideWeights, together: bool = True) -> Encoded | None:
        """Return the whole state for rank 0 to write; None on other ranks.

        `together`: every rank calls this; else rank 0 alone does, and reuses the other ranks' parts of the last save.
        """
        variables = Variables(self._model, beside.found)
        pieces = {**variables.read(), **beside.small}
        if self._nodes.together and together:
            own = {"pieces": {path: pieces[path] for path in variables.own()}}
            parts = self._nodes.gather(_as_bytes(own | {name: beside.values[name] for name in _OWN}))
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
        # A resume mostly rereads the data from the beginning of the epoch, or of the one iterator over all epochs.
        if self._plan.steps_per_epoch is not None or (mid_epoch and self._plan.rereads):
            return self._data_at_begin
        now = self._data_state()
        if mid_epoch:
            before = self._data_at_begin["streams"]
            drawn = [path for path, state in now["streams"].items() if not same(state, before.get(path))]
            self._unsaved.report(drawn, DRAWN_AHEAD)
        return now

    def _data_state(self) -> dict[str, Any]:
        found = self._walk_data()
        values = self._data_start.changed(found) if self._data_start else {}
        return {"streams": _streams(found), "values": values}

    # -- giving back -------------------------------------------------------------------------------------------

    def newest(self, store: CheckpointStore) -> tuple[Position, dict[str, Any]] | None:
        """Return the newest checkpoint, the same on every rank, with this rank's own part in it.

        Raises:
            truba_runner.errors.Failed: another version wrote the checkpoint.
        """
        found = checkpoints.newest(self._nodes, store, decode)
        if found is None:
            return None
        position, state = found
        resuming.check_format(self._context, state["format"], FORMAT)
        self._others = state["others"]
        if 0 < self._context.rank <= len(self._others):
            own = decode(io.BytesIO(self._others[self._context.rank - 1].tobytes()))
            state["pieces"].update(own.pop("pieces"))
            state.update(own)
        return position, state

    def give_back(self, state: dict[str, Any]) -> None:
        """Restore everything from a checkpoint's state.

        Raises:
            truba_runner.errors.Failed: the checkpoint is of another model, or of other data.
        """
        import numpy as np

        # After the training no callbacks exist.
        gone = () if self.callbacks else ("callbacks",)
        found = self._built_and_checked(state["signature"], gone)
        lost = put(found, _without(state["values"], gone), _without(state["links"], gone))
        lost += _write_streams(found, _without(state["streams"], gone))
        Variables(self._model, found).assign(_without(state["pieces"], gone))
        data = self._walk_data()
        lost += put(data, state["data"].get("values", {}), {}) + _write_streams(data, state["data"].get("streams", {}))
        refuse_lost(lost)
        for seed, array in zip(global_seeds(create=bool(state["seeds"])), state["seeds"]):
            seed.assign(array)
        callback_state.restore(self.callbacks, state["callbacks"])
        self._reporter.set_state(state["reporter"])
        self._model.stop_training = state["stop"]
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])

    def _built_and_checked(self, saved: dict[str, Any], gone: tuple[str, ...]) -> Found:
        saved = {**saved, "variables": [one for one in saved["variables"] if not one[0].startswith(gone)]}
        found = self._walk()
        if Variables(self._model, found).signature() != saved["variables"] or not is_built(self._model):
            build(self._context, self._model, self._plan, self._nodes)
            found = self._walk()
        resuming.check_same(self._context, saved, self._signature(Variables(self._model, found)), "variables")
        return found

    def _signature(self, variables: Variables) -> dict[str, Any]:
        """Return what must be equal in the checkpoint and in this start."""
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
    """Write the saved states; return the paths of streams that do not exist."""
    for path, value in saved.items():
        if path in found.pieces:
            write(found.pieces[path], value)
    return [path for path in saved if path not in found.pieces]


def _as_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    encode(value).write(file)
    return file.getvalue()


def _as_array(data: bytes) -> Any:
    import numpy as np

    return np.frombuffer(data, np.uint8)


def flush_event_files(callbacks: list[Any]) -> None:
    """Flush the event files of TensorBoard callbacks; a full disk does not stop the training."""
    import keras
    import tensorflow as tf

    boards = [callback for callback in callbacks if isinstance(callback, keras.callbacks.TensorBoard)]
    for writer in (writer for board in boards for writer in event_writers(board)):
        try:
            writer.flush()
        except tf.errors.OpError as error:
            info("TensorBoard's event file could not be written ({message}); training continues", message=error.message)
