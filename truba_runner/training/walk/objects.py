"""Walk the objects of a training and find all its state, each piece once, by its path.

State is a variable, a tensor, a random stream, or a plain value: a number, text or array, or a list, dict or set of
those. A plain value is state if a user's class, a callback, a function or a module holds it; in an object of a
framework's own class it is a setting. Which attributes a framework class sets is read from its bytecode
(`frameworks_names`), not from a list.
"""

from __future__ import annotations

import collections
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from truba_runner.older_python import zip_equal
from truba_runner.training.walk.kinds import (
    BOOKKEEPING,
    LISTS_OF_ALL,
    PLAIN,
    TORCH_PARTS,
    by_class,
    frameworks_names,
    has_framework_base,
    is_callback,
    is_framework,
    is_torch_module,
    is_tree,
    is_users,
    leaf_kind,
    machinery,
    unsaved_reason,
)

# Limit on visited objects; more are not a training's but a library's tables.
_MOST_OBJECTS = 100_000
# Prefixes of the attributes that TensorFlow adds to every object it tracks.
_TENSORFLOWS = ("_self_", "_obj_reference")


class Slot(NamedTuple):
    """A place that holds a value: an object's attribute, an item of a list or dict, or a function's closure cell."""

    holder: Any
    # attribute, item or cell.
    kind: str
    key: Any

    def get(self) -> Any:
        """Return the current value.

        Raises:
            LookupError, AttributeError, ValueError: the place is empty.
        """
        if self.kind == "item":
            return self.holder[self.key]
        return self.holder.cell_contents if self.kind == "cell" else getattr(self.holder, self.key)

    def set(self, value: Any) -> None:
        """Set the value."""
        if self.kind == "item":
            self.holder[self.key] = value
        elif self.kind == "cell":
            self.holder.cell_contents = value
        else:
            # Past a framework's __setattr__, which would wrap or track the value, but through a property's setter.
            _set_attribute(self.holder, self.key, value)


@dataclass(frozen=True)
class Piece:
    """A variable, a tensor or a random stream."""

    # One of `kinds.LEAVES`.
    kind: str
    thing: Any


@dataclass
class Found:
    """The result of a walk, by path, in the order of the walk."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    # Plain values; `holders` has the path of the object that holds each value or link.
    values: dict[str, Slot] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    # Places in users' objects that refer to other objects, with the path of each of those objects.
    links: dict[str, tuple[Slot, str]] = field(default_factory=dict)
    # Paths of objects that no checkpoint can hold, and why.
    unsaved: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)


class _Step(NamedTuple):
    path: str
    thing: Any
    slot: Slot | None
    # The path of the object that holds `thing`, and whether plain values there are state.
    holder: str
    own: bool
    # Whether the user put it there: only then is it reported if it cannot be saved.
    named: bool = True
    # Whether it is visited after all steps that are not late.
    late: bool = False


def walk(
    roots: Mapping[str, Any],
    skip: Sequence[Any] = (),
    speaking: Sequence[Any] = (),
    known: Mapping[int, str] | None = None,
) -> Found:
    """Return what can be reached from `roots` (names to objects), root by root; an object has its shortest path.

    The globals of a user's module are state, and its functions and classes may hold more.

    `skip`: objects not to look into. `speaking`: objects that save their plain values themselves (`get_state`).
    `known`: paths of objects in an earlier walk, by id; the objects keep them, whatever leads to them now.
    """
    return _Walk(skip, speaking, known or {}).from_roots(roots)


class _Walk:
    def __init__(self, skip: Sequence[Any], speaking: Sequence[Any], known: Mapping[int, str]) -> None:
        self._found = Found()
        self._known = known
        self._paths: dict[int, str] = {id(thing): "" for thing in skip}
        self._speaking = {id(thing) for thing in speaking}
        self._links: dict[str, tuple[Slot, Any]] = {}
        # Keeps visited objects alive: a new object could get the id of a deleted one.
        self._alive: list[Any] = list(skip)

    def from_roots(self, roots: Mapping[str, Any]) -> Found:
        # Root by root: a path from the first root does not depend on the other roots.
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
                # In a tuple only mutable items are state.
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
        for name, cell in zip_equal(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                value = cell.cell_contents
            except ValueError:
                continue  # The cell is still empty.
            yield _Step(f"{path}.{name}", value, Slot(cell, "cell", name), path, True)
        for name, value in sorted(vars(function).items()):
            if name != "__wrapped__":
                yield _Step(f"{path}.{name}", value, Slot(function, "attribute", name), path, True)
        defaults = function.__defaults__ or ()
        for value, parameter in zip(defaults, _parameters(function)[-len(defaults) :]):
            # Mutable defaults outlive a call.
            if not isinstance(value, PLAIN):
                yield _Step(f"{path}.{parameter}", value, Slot([value], "item", 0), path, True)

    def _class(self, kind: type, path: str) -> Iterator[_Step]:
        for name, value in sorted(vars(kind).items()):
            if not name.startswith("__") and (is_tree(value) or not callable(value)):
                yield _Step(f"{path}.{name}", value, Slot(kind, "attribute", name), path, True)

    def _attributes(self, thing: Any, path: str, step: _Step) -> Iterator[_Step]:
        kind = type(thing)
        theirs = frameworks_names(kind)
        left_out = BOOKKEEPING if has_framework_base(kind) else set()
        if is_torch_module(thing):
            left_out = left_out | TORCH_PARTS
        # Plain values of a framework's objects are settings, except those that a callback or a user's class adds;
        # objects of other libraries count as their holder does.
        users = is_callback(kind) or is_users(kind.__module__)
        own = (users or (step.own and not is_framework(kind))) and id(thing) not in self._speaking
        attributes = getattr(thing, "__dict__", {})
        for name in sorted({*attributes, *_slots(kind)}):
            if name in left_out or name.startswith(_TENSORFLOWS) or not (name in attributes or hasattr(thing, name)):
                continue
            value, is_own = attributes[name] if name in attributes else getattr(thing, name), own and name not in theirs
            if isinstance(value, PLAIN) and not is_own:
                continue  # A shortcut: most attributes are such settings.
            is_public = isinstance(getattr(kind, name[1:] or name, None), property)
            slot, late = Slot(thing, "attribute", name), name in LISTS_OF_ALL
            if name == "_layers" and is_public:
                value = thing.layers  # So that the path has the index users know.
            shown = name[1:] if is_public else name
            yield _Step(f"{path}.{shown}", value, slot, path, is_own, users, late)
        if is_torch_module(thing):
            for part in sorted(TORCH_PARTS):
                for name, value in vars(thing)[part].items():
                    yield _Step(f"{path}.{name}", value, Slot(vars(thing)[part], "item", name), path, False, users)
        if is_users(kind.__module__):
            yield _Step(f"{path}.__class__", kind, None, path, True)


@by_class
def _slots(kind: type) -> frozenset[str]:
    own = [base.__dict__.get("__slots__", ()) for base in kind.__mro__ if not is_framework(base)]
    return frozenset(name for slots in own for name in ((slots,) if isinstance(slots, str) else slots))


def _parameters(function: types.FunctionType) -> list[str]:
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount])


def _set_attribute(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, (type, types.ModuleType)) or isinstance(inspect.getattr_static(holder, name, None), property):
        setattr(holder, name, value)
    else:
        object.__setattr__(holder, name, value)
