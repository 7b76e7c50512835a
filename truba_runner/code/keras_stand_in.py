"""Count the weights and activations of a job's Keras network from its layers' shapes; a program that needs no Keras.

It executes the job's module and its `build_model` on a login node, with the layers of keras_shapes.py in place of
Keras. Whatever else they do must do no harm there: the kernel's limits hold for the process, and Python's audit hook
and the functions that replace those of UNHEARD refuse to change files, open connections or start processes.
"""

from __future__ import annotations

import _posixsubprocess  # noqa: F401  # Imported so that `confine` can replace its function.
import importlib.abc
import importlib.machinery
import json
import os
import resource
import sys
import time  # noqa: F401  # The same.
import types
from typing import Any

from truba_runner.code.keras_shapes import LAYERS, Anything, Layer, Tensor, Unknown, elements, tensors

# Limits for a job's module: one second of CPU time, which is enough without a framework; no process, file or core dump.
LIMITS = {
    resource.RLIMIT_CPU: 1,
    resource.RLIMIT_AS: 1 << 30,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 64,
}
# Audit events of `os` that only read, or change this process alone; all others are refused.
_LOOKING = "chdir,fwalk,getxattr,listdir,listxattr,putenv,scandir,unsetenv,walk"
LOOKING = {f"os.{name}" for name in _LOOKING.split(",")}
REFUSED = {"ctypes", "fcntl", "os", "pty", "resource", "shutil", "signal", "socket", "sqlite3", "subprocess", "syslog"}
# Functions that cause no audit event; multiprocessing starts processes with the first.
UNHEARD = {"_posixsubprocess": ("fork_exec",), "os": ("mkfifo", "mknod"), "time": ("sleep",)}
# Modules in C that write files without an audit event.
UNHEARD_MODULES = ("_dbm", "_gdbm")


def input_of(shape: Any = None, batch_size: Any = None, dtype: Any = None, name: Any = None) -> Tensor:
    """Stand in for keras.Input."""
    if not isinstance(shape, (list, tuple)):
        raise Unknown
    return Tensor(tuple(shape))


class Model:
    """Stand in for keras.Model with inputs and outputs; the shapes of a job's own subclass are unknown."""

    def __init__(self, inputs: Any = None, outputs: Any = None, **options: Any) -> None:
        """Keep the output tensors."""
        self.outputs = tensors(list(outputs.values()) if isinstance(outputs, dict) else outputs)
        self.compiled = False

    def compile(self, *args: Any, **options: Any) -> None:
        """Record that the job chooses the optimizer itself."""
        self.compiled = True

    __setattr__ = Layer.__setattr__

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Refuse to be used as a layer of another network."""
        raise Unknown


class Sequential(Model):
    """Stand in for keras.Sequential that begins with an Input."""

    def __init__(self, layers: Any = (), **options: Any) -> None:
        """Add the layers."""
        super().__init__()
        for one in layers or ():
            self.add(one)

    def add(self, one: Any) -> None:
        """Add a layer."""
        if isinstance(one, Tensor):
            self.outputs = [one]
        elif self.outputs:
            self.outputs = [one(self.outputs[0])]
        else:
            raise Unknown


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook, the last one, that replaces each module that no other finds by one in which every name exists."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return a module specification for any name."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: Any) -> None:
        """Make every attribute of the module exist."""
        module.__getattr__ = lambda name: getattr(Anything(), name)


def stand_in() -> None:
    """Put the stand-in where `import keras` finds it."""
    anything = Anything()
    layers: Any = types.ModuleType("keras.layers")
    layers.__dict__.update(LAYERS, Input=input_of, __getattr__=lambda name: getattr(anything, name))
    keras: Any = types.ModuleType("keras")
    keras.__path__ = []
    keras.__dict__.update(layers=layers, Input=input_of, Model=Model, Sequential=Sequential, Layer=Layer)
    keras.__dict__.update(models=types.SimpleNamespace(Model=Model, Sequential=Sequential))
    keras.__getattr__ = lambda name: getattr(anything, name)
    sys.modules.update({"keras": keras, "keras.layers": layers})
    sys.meta_path.append(Missing())


def counted(model: Any) -> dict[str, int]:
    """Return the counts of trainable weights, of other weights, and of activations kept for an example's gradients."""
    layers: dict[int, Any] = {}
    kept: dict[int, Tensor] = {}
    left, seen = list(model.outputs), set()
    if not isinstance(model, Model) or not left:
        raise Unknown
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        left += one.inputs
        layers.update({id(one.layer): one.layer} if one.layer is not None else {})
        if one.layer is not None and one.layer.keeps:
            # Only computed tensors: the network's inputs may be of a smaller type than its activations.
            kept.update({id(tensor.memory): tensor.memory for tensor in one.inputs if tensor.memory.inputs})
    trainable, fixed = (sum(one.weights[part] for one in layers.values()) for part in (0, 1))
    return {
        # It is not known how much the job's own optimizer keeps for each weight.
        "trainable": 0 if model.compiled else trainable,
        "fixed": fixed + trainable if model.compiled else fixed,
        "kept": sum(elements(one.shape) for one in kept.values()),
    }


def harmless(event: str, arguments: Any) -> None:
    """Audit hook that refuses to change anything outside the process."""
    writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if writes or event.partition(".")[0] in REFUSED and event not in LOOKING:
        raise Unknown


def refused(*args: Any, **options: Any) -> Any:
    """Replace functions that cause no audit event."""
    raise Unknown


def confine() -> int:
    """Set the limits and the audit hook; return the descriptor to write the answer to.

    Other output is dropped, so that it cannot fill the memory of the program that waits for the answer.
    """
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for limit, most in LIMITS.items():
        resource.setrlimit(limit, (most, most))
    for module, names in UNHEARD.items():
        for name in names:
            setattr(sys.modules[module], name, refused)
    sys.modules.update(dict.fromkeys(UNHEARD_MODULES))  # type: ignore[arg-type]
    sys.addaudithook(harmless)
    return answer


def main() -> None:
    """Read the job's file, the folders it imports from, and its options from standard input; print the counts."""
    order = json.load(sys.stdin)
    answer = confine()
    stand_in()
    sys.path += order["folders"]
    module: Any = types.ModuleType("truba_job_shapes")
    module.__file__ = order["file"]
    exec(compile(open(order["file"], "rb").read(), order["file"], "exec"), module.__dict__)  # The user's own job.
    os.write(answer, ("\nSHAPES " + json.dumps(counted(module.build_model(**order["options"]))) + "\n").encode())
    # Run no exit handlers of the job.
    os._exit(0)
