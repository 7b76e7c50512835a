"""Find, save and restore a fastai training's other state (not weights, optimizer, fastai's callbacks) by walking it.

The names of attributes of fastai's and torch's objects were checked with fastai 2.8.12 and torch 2.14.1. Under other
names they are taken for the user's own: checkpoints grow, and what of them cannot be saved is reported at the start.
"""

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
from truba_runner.training.fastai.learner import private_names
from truba_runner.training.fastai.state import packed, unplain
from truba_runner.training.walk.kinds import frameworks_names, is_framework, is_tensor, is_tree
from truba_runner.training.walk.objects import Found, Piece, Slot, walk
from truba_runner.training.walk.report import MADE_LATER, Unsaved, refuse_lost
from truba_runner.training.walk.state import Snapshot, Start, frozen, put, read, write

_STREAMS = ("numpy stream", "RandomState stream", "Python stream", "torch stream")
# Attributes of fastai's data sets and loaders that hold the examples, which nothing changes.
_EXAMPLES = ("items", "splits", "lens", "chunks", "res", "tasks")

# Attributes of torch's modules that a state dict has, that repeat those, or that the loop sets.
_OF_MODULES = {"_parameters", "_buffers", "_modules", "_flat_weights", "training"}

State = dict[str, Any]


class Walked:
    """A learner's state by path: saves it, restores it, and reports what no checkpoint can hold."""

    def __init__(self, context: Context, learner: Any) -> None:
        """Walk `learner` as each start makes it, before any training.

        Raises:
            truba_runner.errors.Failed: some state cannot be saved, and `checkpoint.strict` is set.
        """
        self._context, self._learner = context, learner
        # Paths by object id; an object keeps its path even if another one leads to it later.
        self._paths: Mapping[int, str] = {}
        found = self._walk()
        self._start = Start(found)
        self._paths = self._start.paths
        self._unsaved = Unsaved(context.experiment.checkpoint.strict)
        self._tell({**found.unsaved, **_unsaved_states(found, learner), **self._changed_by_readers()})

    def _changed_by_readers(self) -> dict[str, str]:
        """Return the values that reading an item changes, if several processes read: each process has its own copy."""
        loader = self._learner.dls.train
        if not loader.fake_l.num_workers:
            return {}
        start = Start(self._walk())
        with self.kept(), suppress(Exception):  # A damaged item is reported in training.
            loader.do_item(0)
            reason = _("changed by each reading process separately: set data.workers=0")
            return {path: reason for path in start.changed(self._walk()) if path.startswith(("dls", "job"))}
        return {}

    def _tell(self, reasons: dict[str, str]) -> None:
        if self._context.rank == 0:
            self._unsaved.report(reasons)

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
        """Count objects that the beginning of a fit made, such as a copy of the network, as made by each start."""
        found = self._walk()
        self._start.now_also(found)
        self._tell({**found.unsaved, **_unsaved_states(found, self._learner)})

    # -- saving and restoring ----------------------------------------------------------------------------------

    def taken(self, root: str = "") -> State:
        """Return a copy of the state, or of that under one root, in numbers, text, tensors, lists and dicts."""
        walked = _under(self._walk(), root) if root else self._walk()
        if self._context.rank == 0:
            self._unsaved.report(self._start.made_since(walked), MADE_LATER)
            self._unsaved.report(walked.unsaved)
        pieces = {path: read(piece) for path, piece in self._pieces(walked).items()}
        return {
            "pieces": packed(pieces),
            "hidden": packed(_hidden(walked, self._own())),
            "values": packed(self._start.changed(walked)),
            "links": packed(self._start.moved(walked)),
            "states": {path: packed(state) for path, state in _states(walked, self._learner)},
        }

    def _own(self) -> set[int]:
        """Return the ids of the tensors in the network's state dict."""
        return {id(value) for value in self._learner.model.state_dict(keep_vars=True).values()}

    def _pieces(self, found: Found) -> dict[str, Piece]:
        """Return the pieces without the network's weights and the last batch's tensors in fastai's transforms."""
        own = self._own()
        return {
            path: piece
            for path, piece in found.pieces.items()
            if id(piece.thing) not in own and not (piece.kind == "tensor" and path.startswith("dls"))
        }

    def lacks(self, state: State) -> bool:
        """Whether this start has not yet made an object whose state `taken` saved."""
        objects, found = self._walk().objects, {name: unplain(part) for name, part in state.items()}
        holders = [place[0] for part in ("values", "links") for place in found[part].values()]
        return any(path not in objects for path in (*holders, *found["pieces"], *found["states"]))

    def give(self, state: State) -> None:
        """Restore what `taken` returned.

        Raises:
            truba_runner.errors.Failed: this start lacks an object that the state belongs to.
        """
        walked, device = self._walk(), next(self._learner.model.parameters()).device
        lost = put(walked, unplain(state["values"]), unplain(state["links"]))
        vars(self._learner).update(vars(walked.objects["learn"]))
        walked = self._walk()
        for path, value in unplain(state["pieces"]).items():
            if path not in walked.pieces:
                lost.append(path)
            elif walked.pieces[path].kind == "tensor" and value.shape != walked.pieces[path].thing.shape:
                walked.pieces[path].thing.data = value.to(device)
            else:
                write(walked.pieces[path], value)
        for holder, attributes in unplain(state["hidden"]).items():
            for name, value in attributes.items() if holder in walked.objects else ():
                # A tensor of the forward pass cannot be changed in place, and no other object holds it.
                Slot(walked.objects[holder], "attribute", name).set(fastai_state.on(device, value))
        for path, value in state["states"].items():
            if path in walked.objects:
                walked.objects[path].load_state_dict(fastai_state.on(device, unplain(value)))
            else:
                lost.append(path)
        refuse_lost(lost)

    @contextmanager
    def kept(self, with_what_is_made: bool = False) -> Iterator[None]:
        """Restore all state but weights and optimizer after the block.

        `with_what_is_made`: keep attributes that the block added.
        """
        walked = self._walk()
        before, hidden = Snapshot(replace(walked, pieces=self._pieces(walked))), _hidden(walked, self._own())
        states = list(_states(walked, self._learner))
        names = {path: set(vars(thing)) for path, thing in _holders(walked)}
        extras = set(vars(walked.objects["learn"]))
        try:
            yield
        finally:
            if not with_what_is_made:
                for path, thing in _holders(walked):
                    for name in set(vars(thing)) - names[path]:
                        del vars(thing)[name]
                for name in set(_extras(self._learner)) - extras:
                    del vars(self._learner)[name]
            before.put_back()
            for path, attributes in hidden.items():
                for name, value in attributes.items():
                    Slot(walked.objects[path], "attribute", name).set(value)
            for path, state in states:
                walked.objects[path].load_state_dict(state)
            vars(self._learner).update(vars(walked.objects["learn"]))

    # -- random streams of the data ----------------------------------------------------------------------------

    def streams(self) -> list[Any]:
        """Return the random streams that reading may draw from: those of data sets, transforms and the job."""
        learner = self._learner
        found = walk({"dls": learner.dls, "job": self._context.job}, skip=[learner, *_examples(learner.dls)])
        return [piece.thing for piece in found.pieces.values() if piece.kind in _STREAMS]


def _under(found: Found, root: str) -> Found:
    def under(part: dict[str, Any]) -> Any:
        return {path: one for path, one in part.items() if path.startswith(root)}

    pieces, values, links = under(found.pieces), under(found.values), under(found.links)
    return replace(found, pieces=pieces, values=values, links=links, objects=under(found.objects))


def _examples(loaders: Any) -> Iterator[Any]:
    """Yield the containers of examples: not to be walked, as there may be millions."""
    for loader in loaders.loaders:
        data = loader.dataset
        for owner in (loader, data, *getattr(data, "tls", ())):
            if is_framework(type(owner)):
                found = [vars(owner).get(name) for name in _EXAMPLES]
                yield from (thing for thing in found if thing is not None)
                # Such as fastcore's L, which holds the list.
                yield from (vars(thing)["items"] for thing in found if "items" in getattr(thing, "__dict__", {}))


def _extras(learner: Any) -> dict[str, Any]:
    """Return the attributes that the user's code, such as a callback, has set on the learner."""
    from fastai.learner import Learner

    theirs = {*inspect.signature(Learner.__init__).parameters, "cbs", "opt", "_metrics", "lock", "recorder"}
    for item in (learner, *learner.cbs):
        theirs |= frameworks_names(type(item))
        theirs.add(getattr(item, "name", ""))
    return {name: value for name, value in vars(learner).items() if name not in theirs and name not in _LOOPS}


# Attributes that the loop sets and that a batch leaves behind.
_LOOPS = {*private_names.REPLACED, "xb", "yb", "pred", "loss", "loss_grad", "dl", "arch", "pretrained",
          "final_record", "smooth_loss", "scaler", "iter", "epoch", "n_iter", "n_epoch", "train_iter",
          "pct_train"}  # fmt: skip


def _holders(found: Found) -> Iterator[tuple[str, Any]]:
    """Yield path and object of the user's objects, all of whose attributes are state."""
    for path, thing in found.objects.items():
        if hasattr(thing, "__dict__") and not isinstance(thing, type) and not is_framework(type(thing)):
            yield path, thing


def _hidden(found: Found, own: set[int]) -> dict[str, dict[str, Any]]:
    """Return tensors in framework modules that no state dict has, such as a recurrent module's state.

    Include the numbers in the same module, such as the batch size of that state.
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


def _states(found: Found, learner: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and `state_dict()` of optimizers and schedulers that are not the learner's."""
    for path, thing in _stateful(found, learner):
        state = _frozen_state(thing)
        if state is not None:
            yield path, state


def _unsaved_states(found: Found, learner: Any) -> dict[str, str]:
    reason = _("an optimizer or a schedule whose state_dict() has more than numbers, text and tensors")
    return {path: reason for path, thing in _stateful(found, learner) if _frozen_state(thing) is None}


def _frozen_state(thing: Any) -> dict[str, Any] | None:
    """Return a copy of an object's `state_dict()`; None if a checkpoint cannot hold it."""
    try:
        state: dict[str, Any] = unplain(packed(thing.state_dict()))
    except TypeError:
        return None
    return state


def _stateful(found: Found, learner: Any) -> Iterator[tuple[str, Any]]:
    import torch

    schedules, scalers = torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler
    kinds = (torch.optim.Optimizer, schedules, private_names.optimizer_class(), scalers)
    for path, thing in found.objects.items():
        if isinstance(thing, kinds) and thing is not learner.opt:
            yield path, thing
