"""As much of Keras as Keras Tuner needs for its oracles, and none of the seconds that its import takes."""

import sys
import types


class _Attributes(type):
    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return Anything


class Anything(metaclass=_Attributes):
    """Whatever else Keras Tuner looks up when it is imported, and never uses here."""

    def __init__(self, *arguments, **named):
        self.history = {}

    def __call__(self, decorated):
        return decorated


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") or name == "legacy":
            raise AttributeError(name)
        return Anything


def _module(name):
    made = _Module(f"{__name__}.{name}")
    sys.modules[made.__name__] = made
    return made


def version():
    return "3.0"


def _deserialize(config, module_objects=None, custom_objects=None):
    return (custom_objects or module_objects)[config["class_name"]].from_config(config["config"])


applications, callbacks, losses, metrics, models, optimizers, layers, backend, config, saving, utils = (
    _module(name)
    for name in (
        "applications", "callbacks", "losses", "metrics", "models", "optimizers", "layers", "backend", "config",
        "saving", "utils",
    )
)  # fmt: skip
for _name in ("src", "src.ops", "random"):
    _module(_name).__path__ = []
utils.deserialize_keras_object = _deserialize
config.backend = lambda: "none"
