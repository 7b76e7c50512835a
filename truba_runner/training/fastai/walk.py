"""What a fastai training depends on beside weights, optimizer and fastai's callbacks: found by walking its objects."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.fastai import state as fastai_state
from truba_runner.training.walk.kinds import frameworks_names, is_framework, is_tensor, is_tree
from truba_runner.training.walk.objects import Found, Piece, Slot, walk
from truba_runner.training.walk.report import Unsaved, refuse_lost
from truba_runner.training.walk.state import Snapshot, Start, frozen, put, read, write

_STREAMS = ("numpy stream", "RandomState stream", "Python stream", "torch stream")
# Of fastai's data sets and loaders: what they go through, which nothing changes.
_EXAMPLES = ("items", "splits", "lens", "chunks", "res", "tasks")

# Of torch's modules: what a state dict has, the same once more, and what the loop sets.
_OF_MODULES = {"_parameters", "_buffers", "_modules", "_flat_weights", "training"}

State = dict[str, Any]


class Walked:
    """A learner's state by path: saved, put back, and told of where no checkpoint can hold it."""

    def __init__(self, context: Context, learner: Any) -> None:
        """The learner as each start makes it; nothing is trained yet.

        Raises:
            truba_runner.errors.Failed: something cannot be saved, and `checkpoint.strict` is set.
        """
        self._context, self._learner = context, learner
        # Paths that objects keep, whatever else leads to them later.
        self._paths: Mapping[int, str] = {}
        found = self._walk()
        self._start = Start(found)
        self._paths = self._start.paths
        self._told = Unsaved(context.experiment.checkpoint.strict)
        self._tell({**found.unsaved, **_unsaved_states(found, learner), **self._changed_by_readers()})

    def _changed_by_readers(self) -> dict[str, str]:
        """Values that reading an item changes, where several processes read: each has them for itself."""
        loader = self._learner.dls.train
        if not loader.fake_l.num_workers:
            return {}
        start = Start(self._walk())
        with self.kept(), suppress(Exception):  # What is damaged shows in the training.
            loader.do_item(0)
            reason = _("changed by each reading process for itself: set data.workers=0")
            return {path: reason for path in start.changed(self._walk()) if path.startswith(("dls", "job"))}
        return {}

    def _tell(self, reasons: dict[str, str]) -> None:
        if self._context.rank == 0:
            self._told.tell(reasons)

    def _walk(self) -> Found:
        learner = self._learner
        fastais = [callback for callback in learner.cbs if is_framework(type(callback))]
        skip = [learner, learner.opt, *fastais, *_examples(learner.dls)]
        speaking = [item for item in (*learner.cbs, *learner.metrics) if fastai_state.speaks(item)]
        roots: dict[str, Any] = {
            "model": learner.model,
            "loss_func": learner.loss_func,
            "cbs": list(learner.cbs),
            "metrics": [metric for metric in learner.metrics if not is_framework(type(metric))],
            "functions": [metric.func for metric in learner.metrics if hasattr(metric, "func")],
            "learn": SimpleNamespace(**_extras(learner)),
            "job": self._context.job,
            "dls": learner.dls,
        }
        return walk(roots, skip=skip, speaking=speaking, known=self._paths)

    def made_also(self) -> None:
        """Takes what a fit's beginning has made, as a copy of the network, for something that each start makes."""
        found = self._walk()
        self._start.now_also(found)
        self._tell({**found.unsaved, **_unsaved_states(found, self._learner)})

    # -- saving and putting back -------------------------------------------------------------------------------

    def taken(self, root: str = "") -> State:
        """A copy of it, or of what is under one root, in numbers, text, tensors, lists and dicts."""
        found = _under(self._walk(), root) if root else self._walk()
        if self._context.rank == 0:
            self._told.tell_of_made(self._start.made_since(found))
            self._told.tell(found.unsaved)
        pieces = {path: read(piece) for path, piece in self._pieces(found).items()}
        return {
            "pieces": fastai_state.packed(pieces),
            "hidden": fastai_state.packed(_hidden(found, self._own())),
            "values": fastai_state.packed(self._start.changed(found)),
            "links": fastai_state.packed(self._start.moved(found)),
            "states": {path: fastai_state.packed(state) for path, state in _states(found, self._learner)},
        }

    def _own(self) -> set[int]:
        """What the network's state dict has."""
        return {id(value) for value in self._learner.model.state_dict(keep_vars=True).values()}

    def _pieces(self, found: Found) -> dict[str, Piece]:
        """Without the network's weights, and the tensors of fastai's transforms: what the last batch has left there."""
        own = self._own()
        return {
            path: piece
            for path, piece in found.pieces.items()
            if id(piece.thing) not in own and not (piece.kind == "tensor" and path.startswith("dls"))
        }

    def lacks(self, state: State) -> bool:
        """Whether this start has not made, so far, what `taken` gave."""
        objects, found = self._walk().objects, self.unpacked(state)
        holders = [place[0] for part in ("values", "links") for place in found[part].values()]
        return any(path not in objects for path in (*holders, *found["pieces"], *found["states"]))

    @staticmethod
    def unpacked(state: State) -> State:
        """What `taken` gave, as it was before it was packed."""
        return {name: _unpacked(part) for name, part in state.items()}

    def give(self, state: State) -> None:
        """Puts back what `taken` gave.

        Raises:
            truba_runner.errors.Failed: this start has no place for some of it.
        """
        found, device = self._walk(), next(self._learner.model.parameters()).device
        lost = put(found, _unpacked(state["values"]), _unpacked(state["links"]))
        vars(self._learner).update(vars(found.objects["learn"]))
        found = self._walk()
        for path, value in _unpacked(state["pieces"]).items():
            if path not in found.pieces:
                lost.append(path)
            elif found.pieces[path].kind == "tensor" and value.shape != found.pieces[path].thing.shape:
                found.pieces[path].thing.data = value.to(device)
            else:
                write(found.pieces[path], value)
        for holder, attributes in _unpacked(state["hidden"]).items():
            for name, value in attributes.items() if holder in found.objects else ():
                _set_hidden(Slot(found.objects[holder], "attribute", name), fastai_state.on(device, value))
        for path, value in state["states"].items():
            if path in found.objects:
                found.objects[path].load_state_dict(fastai_state.on(device, _unpacked(value)))
            else:
                lost.append(path)
        refuse_lost(lost)

    @contextmanager
    def kept(self, with_what_is_made: bool = False) -> Iterator[None]:
        """What is trained, shown or tried in here leaves nothing behind, but in weights and optimizer.

        `with_what_is_made`: attributes that are new stay.
        """
        found = self._walk()
        before, hidden = Snapshot(replace(found, pieces=self._pieces(found))), _hidden(found, self._own())
        states = list(_states(found, self._learner))
        names = {path: set(vars(thing)) for path, thing in _holders(found)}
        extras = set(vars(found.objects["learn"]))
        try:
            yield
        finally:
            if not with_what_is_made:
                for path, thing in _holders(found):
                    for name in set(vars(thing)) - names[path]:
                        del vars(thing)[name]
                for name in set(_extras(self._learner)) - extras:
                    del vars(self._learner)[name]
            before.put_back()
            for path, attributes in hidden.items():
                for name, value in attributes.items():
                    _set_hidden(Slot(found.objects[path], "attribute", name), value)
            for path, state in states:
                found.objects[path].load_state_dict(state)
            vars(self._learner).update(vars(found.objects["learn"]))

    # -- the data's streams ------------------------------------------------------------------------------------

    def streams(self) -> list[Any]:
        """Random streams that reading may draw from: of the data sets and transforms, and the job's own."""
        learner = self._learner
        found = walk({"dls": learner.dls, "job": self._context.job}, skip=[learner, *_examples(learner.dls)])
        return [piece.thing for piece in found.pieces.values() if piece.kind in _STREAMS]


def _under(found: Found, root: str) -> Found:
    def under(part: dict[str, Any]) -> Any:
        return {path: one for path, one in part.items() if path.startswith(root)}

    pieces, values, links = under(found.pieces), under(found.values), under(found.links)
    return replace(found, pieces=pieces, values=values, links=links, objects=under(found.objects))


def _unpacked(value: Any) -> Any:
    return fastai_state.unplain(value)


def _examples(loaders: Any) -> Iterator[Any]:
    """The examples themselves, which may be millions."""
    for loader in loaders.loaders:
        data = loader.dataset
        for owner in (loader, data, *getattr(data, "tls", ())):
            if is_framework(type(owner)):
                found = [vars(owner).get(name) for name in _EXAMPLES]
                yield from (thing for thing in found if thing is not None)
                # What has the list inside.
                yield from (vars(thing)["items"] for thing in found if "items" in getattr(thing, "__dict__", {}))


def _extras(learner: Any) -> dict[str, Any]:
    """Attributes that callbacks of the user's have given the learner."""
    from fastai.learner import Learner

    theirs = {*inspect.signature(Learner.__init__).parameters, "cbs", "opt", "_metrics", "lock", "recorder"}
    for item in (learner, *learner.cbs):
        theirs |= frameworks_names(type(item))
        theirs.add(getattr(item, "name", ""))
    own = {name: value for name, value in vars(learner).items() if name not in theirs and name not in _LOOPS}
    return own


# What the loop puts there, and what a batch leaves.
_LOOPS = {"_do_fit", "all_batches", "load", "xb", "yb", "pred", "loss", "loss_grad", "dl", "arch", "pretrained",
          "final_record", "smooth_loss", "scaler", "iter", "epoch", "n_iter", "n_epoch", "train_iter",
          "pct_train"}  # fmt: skip


def _holders(found: Found) -> Iterator[tuple[str, Any]]:
    """Objects of the user's, whose attributes are all state."""
    for path, thing in found.objects.items():
        if hasattr(thing, "__dict__") and not isinstance(thing, type) and not is_framework(type(thing)):
            yield path, thing


def _hidden(found: Found, own: set[int]) -> dict[str, dict[str, Any]]:
    """Attributes of the frameworks' modules with tensors in them that no state dict has: a recurrent one's state.

    With the numbers beside them, as for how large a batch that state is.
    """
    from torch import nn

    kept: dict[str, dict[str, Any]] = {}
    for path, thing in found.objects.items():
        if isinstance(thing, nn.Module) and is_framework(type(thing)):
            values = {name: value for name, value in vars(thing).items() if name not in _OF_MODULES}
            if any(_has_tensors(value, own) for value in values.values()):
                numbers = (bool, int, float, type(None))
                kept[path] = {
                    name: frozen(value)
                    for name, value in values.items()
                    if isinstance(value, numbers) or _has_tensors(value, own)
                }
    return kept


def _has_tensors(value: Any, own: set[int]) -> bool:
    if is_tensor(value):
        return id(value) not in own
    if not is_tree(value):
        return False
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_has_tensors(item, own) for item in items)


def _set_hidden(slot: Slot, value: Any) -> None:
    # What the forward pass has computed with cannot be changed in place, and nobody else holds it.
    slot.set(value)


def _states(found: Found, learner: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Optimizers and schedulers that are not the learner's, by what they say themselves."""
    for path, thing in _stateful(found, learner):
        state = _frozen_state(thing)
        if state is not None:
            yield path, state


def _unsaved_states(found: Found, learner: Any) -> dict[str, str]:
    reason = _("an optimizer or a schedule whose state_dict() has more than numbers, text and tensors")
    return {path: reason for path, thing in _stateful(found, learner) if _frozen_state(thing) is None}


def _frozen_state(thing: Any) -> dict[str, Any] | None:
    """A copy of an object's `state_dict`; None where a checkpoint cannot hold what is in it."""
    try:
        state: dict[str, Any] = fastai_state.unplain(fastai_state.packed(thing.state_dict()))
    except TypeError:
        return None
    return state


def _stateful(found: Found, learner: Any) -> Iterator[tuple[str, Any]]:
    import torch
    from fastai.optimizer import _BaseOptimizer

    kinds = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, _BaseOptimizer, torch.amp.GradScaler)
    for path, thing in found.objects.items():
        if isinstance(thing, kinds) and thing is not learner.opt:
            yield path, thing
