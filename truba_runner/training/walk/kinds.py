"""Classify an object for a walk: a piece of state, a plain value, a framework's machinery, or something unsavable.

The names of frameworks' classes and attributes were checked with Keras 3.15.1, TensorFlow 2.21.0, fastai 2.8.12 and
torch 2.14.1. Under other names they are walked as well, which takes longer, and may report state that is none.
"""

from __future__ import annotations

import array
import collections
import dis
import enum
import functools
import inspect
import io
import random
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from truba_runner.code import job_module
from truba_runner.language import _
from truba_runner.older_python import standard_library

_Answer = TypeVar("_Answer")

PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum)
CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)

# Packages in whose objects plain values are settings, not state.
FRAMEWORKS = {
    "absl", "fastai", "fastcore", "fastprogress", "fasttransform", "jax", "keras", "keras_tuner", "ml_dtypes", "numpy",
    "optree", "plum", "tensorboard", "tensorflow", "tf_keras", "timm", "torch", "torchvision", "truba_runner", "wrapt",
}  # fmt: skip
# Packages whose objects hold no state of a training.
_MACHINERY_OF = {
    "_io", "_thread", "abc", "asyncio", "concurrent", "contextlib", "contextvars", "ctypes", "datetime", "decimal",
    "functools", "importlib", "inspect", "io", "logging", "matplotlib", "multiprocessing", "omegaconf", "pathlib", "re",
    "socket", "string", "subprocess", "tempfile", "threading", "tqdm", "truba_runner", "typing", "uuid", "weakref",
    "zoneinfo", "pandas", "PIL", "pyarrow", "spacy", "thinc",
}  # fmt: skip
# Classes of frameworks for graphs and for making layers; a training does not change their objects.
_MACHINERY = {
    "DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "Initializer", "InputSpec", "KerasTensor", "Node",
    "SerializableDict", "Signature", "Tracker", "TensorSpec", "TensorShape", "Strategy", "StrategyBase",
    "FuncGraph", "ConcreteFunction", "SummaryWriter", "DatasetSpec",
}  # fmt: skip
# Attributes with a framework's bookkeeping: compiled functions, graphs, and the origin of its objects.
BOOKKEEPING = {
    "_compile_config", "_compiled_trainable_state", "_distribute_strategy", "_distribution_strategy",
    "_eval_epoch_iterator", "_inbound_nodes", "_losses_override", "_nodes", "_nodes_by_depth", "_operations",
    "_operations_by_depth", "_outbound_nodes", "_saved_model_arg_spec", "_saved_model_inputs_spec", "_tracked",
    "_tracker", "_trainable_variables_indices", "predict_function", "test_function", "train_function",
}  # fmt: skip
# Attributes with the parameters, buffers and submodules of a torch module.
TORCH_PARTS = {"_buffers", "_modules", "_parameters"}
# Lists of objects that mostly are attributes too; walked last, so that a path has the attribute's name.
LISTS_OF_ALL = {
    "_flat_layers", "_functional", "_layers", "_losses", "_metrics", "_non_trainable_variables", "_seed_generators",
    "_trainable_variables", "_variables",
}  # fmt: skip
# The kinds of leaves; `walk.state` reads and writes them.
LEAVES = ("variable", "tensor", "numpy stream", "RandomState stream", "Python stream", "torch stream")


def by_class(function: Callable[[type], _Answer]) -> Callable[[type], _Answer]:
    """Cache a function's answers by class: it is called in each save, which the training waits for.

    A framework that is imported later changes no answer: a class cannot become one of its subclasses.
    """
    return cache(function)


# -- origin ---------------------------------------------------------------------------------------------------


def home(kind: Any) -> str:
    """Return the top-level package of a class or function."""
    return str(getattr(kind, "__module__", None) or "").split(".")[0]


@by_class
def is_framework(kind: type) -> bool:
    """Whether a class is a framework's own, not a user's subclass."""
    return home(kind) in FRAMEWORKS


@by_class
def has_framework_base(kind: type) -> bool:
    """Whether a class is a framework's own, or derived from one."""
    return any(is_framework(base) for base in kind.__mro__)


def is_torch_module(thing: Any) -> bool:
    """Whether an object is a torch.nn.Module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


@cache
def is_users(module: str) -> bool:
    """Whether a module belongs to the user's project: neither the standard library nor an installed package."""
    top = module.split(".")[0]
    if top.startswith(job_module.PREFIX):
        return True
    if top in FRAMEWORKS or top in standard_library() and top != "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(PurePath(file).parts)


@by_class
def is_callback(kind: type) -> bool:
    """Whether a class is one of Keras' or fastai's callbacks."""
    return any(base.__name__ == "Callback" for base in kind.__mro__)


@by_class
def frameworks_names(kind: type) -> frozenset[str]:
    """Return the attributes that a class's framework base classes set on their objects.

    They are read from the bytecode of the methods, which needs no instance (but for torch.nn.Module).
    """
    return frozenset().union(*(_names_of(base) for base in kind.__mro__ if is_framework(base)))


_STORE = dis.opmap["STORE_ATTR"]


@by_class
def _names_of(kind: type) -> frozenset[str]:
    return frozenset(_set_in(kind))


def _set_in(kind: type) -> Iterator[str]:
    for code in _codes(kind):
        yield from _set_by(code)
    yield from vars(kind).get("__annotations__", ())
    if kind.__module__ == "torch.nn.modules.module":
        # Its __init__ calls super().__setattr__ with names as strings, which the bytecode does not show.
        yield from vars(kind())


def _codes(kind: type) -> Iterator[types.CodeType]:
    for value in vars(kind).values():
        for function in (getattr(value, name, None) for name in ("fget", "fset", "__func__", "__wrapped__")):
            if isinstance(function, types.FunctionType):
                yield function.__code__
        if isinstance(value, types.FunctionType):
            yield inspect.unwrap(value).__code__


def _set_by(code: types.CodeType) -> Iterator[str]:
    argument = 0
    # Not `dis`, which makes an object of every instruction: a tenth of a second for a model's classes.
    for operation, low in zip(code.co_code[::2], code.co_code[1::2]):
        argument = argument << 8 | low
        if operation == _STORE:
            yield code.co_names[argument]
        if operation != dis.EXTENDED_ARG:
            argument = 0
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _set_by(inner)


# -- kind ------------------------------------------------------------------------------------------------------


def leaf_kind(thing: Any) -> str | None:
    """Return which of LEAVES an object is; None if it is no leaf."""
    return _leaf_kind(type(thing))


@by_class
def _leaf_kind(kind: type) -> str | None:
    import numpy as np

    tensorflow, torch, keras = (sys.modules.get(name) for name in ("tensorflow", "torch", "keras"))
    if keras and issubclass(kind, keras.Variable) or tensorflow and issubclass(kind, tensorflow.Variable):
        return "variable"
    if torch and issubclass(kind, torch.Tensor):
        return "tensor"
    if torch and issubclass(kind, torch.Generator):
        return "torch stream"
    kinds = {
        np.random.Generator: "numpy stream",
        np.random.RandomState: "RandomState stream",
        random.Random: "Python stream",
    }
    return next((name for stream, name in kinds.items() if issubclass(kind, stream)), None)


def is_tree(value: Any, depth: int = 12) -> bool:
    """Whether a value is plain: numbers, text, arrays, constant tensors, also in lists, tuples, dicts, sets, deques."""
    if isinstance(value, PLAIN) or is_array(value):
        return True
    if depth == 0 or not isinstance(value, CONTAINERS):
        return False
    if isinstance(value, dict):
        return all(isinstance(key, (*PLAIN, tuple)) and is_tree(item, depth - 1) for key, item in value.items())
    return all(is_tree(item, depth - 1) for item in value)


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or Python, a NumPy scalar, or a tensor but no variable or parameter."""
    if not _holds_numbers(type(value)):
        return False
    import numpy as np

    if isinstance(value, (np.ndarray, np.generic)):
        return not value.dtype.hasobject
    return isinstance(value, array.array) or is_eager(value) or is_tensor(value)


@by_class
def _holds_numbers(kind: type) -> bool:
    import numpy as np

    libraries = (sys.modules.get(name) for name in ("tensorflow", "torch"))
    return issubclass(kind, (np.ndarray, np.generic, array.array, *(one.Tensor for one in libraries if one)))


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor that is no parameter, nor computed from one."""
    torch = sys.modules.get("torch")
    return bool(torch and isinstance(value, torch.Tensor) and not value.requires_grad)


def is_eager(value: Any) -> bool:
    """Whether a value is an eager TensorFlow tensor of a numeric dtype, not a variable."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(value, tensorflow.Tensor) or not hasattr(value, "numpy"):
        return False
    return bool(value.dtype.is_numpy_compatible and value.dtype != tensorflow.string)


def machinery(thing: Any) -> bool:
    """Whether nothing in an object can be state of a training."""
    if isinstance(thing, type):
        return not is_users(thing.__module__)
    if isinstance(thing, types.FunctionType):
        return not is_users(thing.__module__ or "")
    if isinstance(thing, types.MethodType):
        return home(type(thing.__self__)) == "truba_runner" or isinstance(thing.__self__, type)
    if isinstance(thing, types.ModuleType):
        return not is_users(thing.__name__)
    if isinstance(thing, (types.BuiltinFunctionType, property, staticmethod, classmethod)):
        return True
    return _machinery(type(thing))


@by_class
def _machinery(kind: type) -> bool:
    if _is_file(kind) or _is_iterator(kind):
        return False
    if home(kind) in _MACHINERY_OF:
        return not issubclass(kind, functools.partial)
    return is_framework(kind) and any(base.__name__ in _MACHINERY for base in kind.__mro__)


def unsaved_reason(thing: Any) -> str | None:
    """Return why no checkpoint can hold an object; None if one can, or if that depends on the object's content."""
    if isinstance(thing, types.GeneratorType):
        return _("a generator: its position cannot be read")
    if _is_file(type(thing)):
        return _("an open file")
    if _is_iterator(type(thing)) and not hasattr(thing, "__dict__"):
        return _("an iterator ({kind}): its position cannot be read", kind=type(thing).__name__)
    if type(thing).__name__ == "OwnedIterator":
        return _("an iterator over a Dataset: its position cannot be read")
    return None


@by_class
def _is_file(kind: type) -> bool:
    return issubclass(kind, io.IOBase)


@by_class
def _is_iterator(kind: type) -> bool:
    return issubclass(kind, collections.abc.Iterator)
