"""Finds what a training depends on, by walking its objects: each piece of state once, by the path that leads to it.

A piece is a variable, a tensor or a random stream, which hold a value of their own, or a plain value: a number, text,
array or a list, dict or set of those. A plain value is state where a user's class, a callback, a function or a module
holds it; where a framework's own class holds it, it is a setting. What such a class holds itself is read from its code
(`frameworks_names`), not from a list.
"""

from __future__ import annotations

import collections
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truba_runner.training.walk.kinds import (
    BOOKKEEPING,
    LISTS_OF_ALL,
    PLAIN,
    TORCH_PARTS,
    frameworks_names,
    is_callback,
    is_framework,
    is_torch_module,
    is_tree,
    is_users,
    leaf_kind,
    machinery,
    unsaved_reason,
)

# So many objects are looked at; what holds more is no training but a library's tables.
_MOST_OBJECTS = 100_000
# How TensorFlow's names begin for what it keeps in any object that it tracks.
_TENSORFLOWS = ("_self_", "_obj_reference")


@dataclass(frozen=True)
class Slot:
    """Where a value stands: an attribute of an object, an item of a list or dict, or what a function closes over."""

    holder: Any
    # attribute, item or cell.
    kind: str
    key: Any

    def get(self) -> Any:
        """The value that stands there now.

        Raises:
            LookupError, AttributeError, ValueError: nothing does.
        """
        if self.kind == "item":
            return self.holder[self.key]
        return self.holder.cell_contents if self.kind == "cell" else getattr(self.holder, self.key)

    def set(self, value: Any) -> None:
        """Puts a value there."""
        if self.kind == "item":
            self.holder[self.key] = value
        elif self.kind == "cell":
            self.holder.cell_contents = value
        else:
            # A framework's own __setattr__ would wrap or track it; a property does what it is there for.
            _set_attribute(self.holder, self.key, value)


@dataclass(frozen=True)
class Piece:
    """A variable, a tensor or a random stream."""

    # One of `walk_kinds.LEAVES`.
    kind: str
    thing: Any


@dataclass
class Found:
    """What a walk has found, by path, in the order in which it was found."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    # Plain values, and the path of the object that holds each.
    values: dict[str, Slot] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    # Places in users' objects where other objects stand, and the path of each of those.
    links: dict[str, tuple[Slot, str]] = field(default_factory=dict)
    # Paths of what no checkpoint can hold, and why.
    unsaved: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    path: str
    thing: Any
    slot: Slot | None
    # The path of the object that holds it, and whether plain values there are state.
    holder: str
    own: bool
    # Whether a user has put it there, who can be told of what cannot be saved.
    named: bool = True
    # Whether it is looked at after all that is not.
    late: bool = False


def walk(
    roots: Mapping[str, Any],
    skip: Sequence[Any] = (),
    speaking: Sequence[Any] = (),
    known: Mapping[int, str] | None = None,
) -> Found:
    """What can be reached from `roots`, names to objects, one after the other; of two paths the shorter counts.

    Of a module that is the user's its globals are state, and the functions and classes in it hold some.

    `skip`: objects that are not to be looked into. `speaking`: objects whose plain values are saved in another way.
    `known`: paths that objects had at an earlier walk, by their ids, and keep, whatever else leads to them now.
    """
    return _Walk(skip, speaking, known or {}).from_roots(roots)


class _Walk:
    def __init__(self, skip: Sequence[Any], speaking: Sequence[Any], known: Mapping[int, str]) -> None:
        self._found = Found()
        self._known = known
        self._paths: dict[int, str] = {id(thing): "" for thing in skip}
        self._speaking = {id(thing) for thing in speaking}
        self._links: dict[str, tuple[Slot, Any]] = {}
        # Two objects may have one id, if the first is gone before the second is looked at.
        self._alive: list[Any] = list(skip)

    def from_roots(self, roots: Mapping[str, Any]) -> Found:
        # One root after the other: what the first leads to has its path from there, whatever else is walked.
        for name, thing in roots.items():
            self._from(_Step(name, thing, None, "", True))
        for path, (slot, thing) in self._links.items():
            if target := self._paths.get(id(thing)):
                self._found.links[path] = (slot, target)
        return self._found

    def _from(self, root: _Step) -> None:
        todo, later = collections.deque([root]), collections.deque[_Step]()
        while (todo or later) and len(self._alive) < _MOST_OBJECTS:
            for step in self._visit((todo or later).popleft()):
                (later if step.late else todo).append(step)

    def _visit(self, step: _Step) -> list[_Step]:
        thing, path = step.thing, step.path
        if is_tree(thing) and (step.own or not leaf_kind(thing)):
            if step.slot is not None and step.own:
                self._found.values[path] = step.slot
                self._found.holders[path] = step.holder
            return []
        if id(thing) in self._paths or machinery(thing):
            return []
        path = self._known.get(id(thing), path)
        self._paths[id(thing)] = path
        self._alive.append(thing)
        self._found.objects[path] = thing
        if kind := leaf_kind(thing):
            self._found.pieces[path] = Piece(kind, thing)
            return []
        if reason := unsaved_reason(thing):
            if step.own and step.named:
                self._found.unsaved[path] = reason
            return []
        steps = list(self._inside(thing, path, step))
        for inner in steps:
            if inner.own and inner.slot is not None and not isinstance(inner.thing, PLAIN):
                self._links[inner.path] = (inner.slot, inner.thing)
                self._found.holders[inner.path] = inner.holder
        return steps

    def _inside(self, thing: Any, path: str, step: _Step) -> Iterator[_Step]:
        own, named = step.own, step.named
        if isinstance(thing, types.ModuleType):
            yield from self._globals(thing, path)
        elif isinstance(thing, dict):
            for key, value in list(thing.items()):
                if isinstance(key, (*PLAIN, tuple)):
                    yield _Step(f"{path}[{key!r}]", value, Slot(thing, "item", key), path, own, named)
        elif isinstance(thing, (list, tuple, collections.deque)):
            for index, value in enumerate(thing):
                # Of a tuple only what can itself be changed is state.
                slot = None if isinstance(thing, tuple) and isinstance(value, PLAIN) else Slot(thing, "item", index)
                yield _Step(f"{path}[{index}]", value, slot, path, own, named)
        elif isinstance(thing, types.MethodType):
            yield _Step(f"{path}.__self__", thing.__self__, None, path, own)
            yield _Step(path + "()", thing.__func__, None, path, own)
        elif isinstance(thing, functools.partial):
            for name in ("func", "args", "keywords"):
                yield _Step(f"{path}.{name}", getattr(thing, name), None, path, own, named)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing, path)
        elif isinstance(thing, type):
            yield from self._class(thing, path)
        else:
            yield from self._attributes(thing, path, step)

    def _globals(self, module: types.ModuleType, path: str) -> Iterator[_Step]:
        for name, value in sorted(vars(module).items()):
            if name.startswith("__"):
                continue
            slot = None if isinstance(value, types.ModuleType) else Slot(module, "attribute", name)
            yield _Step(f"{path}.{name}", value, slot, path, True)

    def _function(self, function: types.FunctionType, path: str) -> Iterator[_Step]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                continue  # It is not filled yet.
            yield _Step(f"{path}.{name}", value, Slot(cell, "cell", name), path, True)
        for name, value in sorted(vars(function).items()):
            if name != "__wrapped__":
                yield _Step(f"{path}.{name}", value, Slot(function, "attribute", name), path, True)
        defaults = function.__defaults__ or ()
        for value, parameter in zip(defaults, _parameters(function)[-len(defaults) :], strict=False):
            # Lists and dicts there outlive a call.
            if not isinstance(value, PLAIN):
                yield _Step(f"{path}.{parameter}", value, Slot([value], "item", 0), path, True)

    def _class(self, kind: type, path: str) -> Iterator[_Step]:
        for name, value in sorted(vars(kind).items()):
            if not name.startswith("__") and (is_tree(value) or not callable(value)):
                yield _Step(f"{path}.{name}", value, Slot(kind, "attribute", name), path, True)

    def _attributes(self, thing: Any, path: str, step: _Step) -> Iterator[_Step]:
        kind = type(thing)
        theirs = frameworks_names(kind)
        left_out = BOOKKEEPING if any(is_framework(base) for base in kind.__mro__) else set()
        if is_torch_module(thing):
            left_out = left_out | TORCH_PARTS
        # Plain values of a framework's objects are settings, but a callback or a user's class may have its own there;
        # what a library's object holds is whose the object is.
        users = is_callback(thing) or is_users(kind.__module__)
        own = (users or (step.own and not is_framework(kind))) and id(thing) not in self._speaking
        attributes = getattr(thing, "__dict__", {})
        for name in sorted({*attributes, *_slots(kind)}):
            if name in left_out or name.startswith(_TENSORFLOWS) or not (name in attributes or hasattr(thing, name)):
                continue
            value, is_own = attributes[name] if name in attributes else getattr(thing, name), own and name not in theirs
            if isinstance(value, PLAIN) and not is_own:
                continue  # Most of what there is.
            is_public = isinstance(getattr(kind, name[1:] or name, None), property)
            slot, late = Slot(thing, "attribute", name), name in LISTS_OF_ALL
            if name == "_layers" and is_public:
                value = thing.layers  # The list that users count in.
            shown = name[1:] if is_public else name
            yield _Step(f"{path}.{shown}", value, slot, path, is_own, users, late)
        if is_torch_module(thing):
            for part in sorted(TORCH_PARTS):
                for name, value in vars(thing)[part].items():
                    yield _Step(f"{path}.{name}", value, Slot(vars(thing)[part], "item", name), path, False, users)
        if is_users(kind.__module__):
            yield _Step(f"{path}.__class__", kind, None, path, True)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = () if is_framework(base) else base.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _parameters(function: types.FunctionType) -> list[str]:
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount])


def _set_attribute(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, (type, types.ModuleType)) or isinstance(inspect.getattr_static(holder, name, None), property):
        setattr(holder, name, value)
    else:
        object.__setattr__(holder, name, value)
