"""Count what a job's Keras network needs, from its layers' shapes alone: a program that runs without Keras.

The job's `build_model` is executed with the layers of keras_shapes.py in place of Keras.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from typing import Any

from truba_runner.code.keras_shapes import LAYERS, Anything, Layer, Tensor, Unknown, elements, tensors

# Events of Python's audit hooks.
_CHANGING = "chmod,chown,exec,fork,forkpty,link,mkdir,posix_spawn,remove,rename,rmdir,symlink,system,truncate"
CHANGES = {f"os.{name}" for name in _CHANGING.split(",")}


def input_of(shape: Any = None, batch_size: Any = None, dtype: Any = None, name: Any = None) -> Tensor:
    """Stand in for keras.Input."""
    if not isinstance(shape, (list, tuple)):
        raise Unknown
    return Tensor(tuple(shape))


class Model:
    """Stand in for keras.Model with inputs and outputs; a subclass of the job's own has no known shapes."""

    def __init__(self, inputs: Any = None, outputs: Any = None, **options: Any) -> None:
        """Take the outputs' tensors."""
        self.outputs = tensors(list(outputs.values()) if isinstance(outputs, dict) else outputs)

    def compile(self, *args: Any, **options: Any) -> None:
        """Do nothing."""

    __setattr__ = Layer.__setattr__

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Refuse to be a layer of another network."""
        raise Unknown


class Sequential(Model):
    """Stand in for keras.Sequential that begins with an Input."""

    def __init__(self, layers: Any = (), **options: Any) -> None:
        """Take the layers."""
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
    """Finds, last of all, every module that is neither Python's own nor the job's: it has anything."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find it."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: Any) -> None:
        """Give it every name."""
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
    """Return the network's trainable weights, its others, and the numbers kept for an example until the gradient."""
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
            # An example itself may come in another type than the layer computes in.
            kept.update({id(given.memory): given.memory for given in one.inputs if given.memory.inputs})
    return {
        "trainable": sum(one.weights[0] for one in layers.values()),
        "fixed": sum(one.weights[1] for one in layers.values()),
        "kept": sum(elements(one.shape) for one in kept.values()),
    }


def harmless(event: str, arguments: Any) -> None:
    """Refuse what changes anything outside the process; an audit hook. A job's module may do so when it is executed."""
    writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if writes or event in CHANGES or event.partition(".")[0] in {"shutil", "socket", "subprocess", "ctypes"}:
        raise Unknown


def main() -> None:
    """Read the job's file, the folders it imports from, and its options from standard input; print the counts."""
    asked = json.load(sys.stdin)
    sys.addaudithook(harmless)
    stand_in()
    sys.path += asked["folders"]
    module: Any = types.ModuleType("truba_job_shapes")
    module.__file__ = asked["file"]
    exec(compile(open(asked["file"], "rb").read(), asked["file"], "exec"), module.__dict__)  # The user's own job.
    print("\nSHAPES " + json.dumps(counted(module.build_model(**asked["options"]))))
