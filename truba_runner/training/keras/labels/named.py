"""What the config names, made: Keras' own and the job's by name, any other by import path. One rule for all of it.

Optimizers, schedules, losses, metrics and callbacks are written as `NAME` or `{class_name: NAME, config: {…}}`; a value
in `config` may be of that form again. The job's own go before Keras' of the same name.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from truba_runner.errors import Failed, nearest
from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import entry_of, imported, make

# compile() picks those that fit the labels.
_BY_LABELS = {"accuracy", "acc", "crossentropy", "ce"}


def is_entry(value: Any) -> bool:
    """Whether it is written as `{class_name: …}`."""
    return isinstance(value, Mapping) and "class_name" in value


def made(context: Context | None, where: str, given: Any, room: ModuleType) -> Any:
    """The object, or the function, that `given` stands for; a plain name of Keras' stays a name.

    `where` is the place in the config, `room` the module of Keras' that such things are in, as keras.losses.

    Raises:
        truba_runner.errors.Failed: there is no such thing, or it does not take these settings.
    """
    name, settings = entry_of(where, given, "NAME")
    own = _own(context, where, name)
    if own is None and not is_entry(given):
        return _known(context, where, name, room)
    found = own or _class_of(context, where, name, room)
    return _with_settings(found, where, name, _settings(context, where, settings))


def make_class(context: Context | None, where: str, given: Any, room: ModuleType) -> Any:
    """As `made`, where nothing but an object will do.

    Raises:
        truba_runner.errors.Failed: as `made`.
    """
    return made(context, where, given if is_entry(given) else {"class_name": given}, room)


def _own(context: Context | None, where: str, name: str) -> Any:
    """What has an import path, or is the job's; None: it can only be Keras'."""
    if context is None:
        return None
    if "." in name:
        return imported(context, where, name)
    found = getattr(context.job, name, None)
    return found if callable(found) and not isinstance(found, ModuleType) else None


def _known(context: Context | None, where: str, name: str, room: ModuleType) -> str:
    """A name that Keras is known to have."""
    get: Callable[[Any], Any] = room.get
    if name.lower() not in _BY_LABELS:
        try:
            get(name)
        except ValueError as error:
            raise _unknown(context, where, name, _names(room)) from error
        except TypeError:
            pass  # It needs arguments: compile() says which.
    return name


def _class_of(context: Context | None, where: str, name: str, room: ModuleType) -> Any:
    """A class of Keras', whose letters may be small ones; also of those that a class of the room is made with."""
    classes = {item for item in dir(room) if inspect.isclass(getattr(room, item))}
    by_small = {item.lower(): item for item in classes}
    if name.lower() not in by_small:
        raise _unknown(context, where, name, classes)
    return getattr(room, by_small[name.lower()])


def _unknown(context: Context | None, where: str, name: str, valid: set[str]) -> Failed:
    own = {item for item, value in vars(context.job).items() if _may_be_meant(value)} if context else set()
    return Failed(
        _(
            "{where}: Keras has no {name!r}. {nearest} The job's own are found by their names too, and those of other "
            "modules by their path: mypackage.mymodule.NAME.",
            where=where,
            name=name,
            nearest=nearest(name, valid | own),
        )
    )


def _may_be_meant(value: Any) -> bool:
    import keras

    kinds = (keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer, keras.callbacks.Callback)
    return inspect.isclass(value) and issubclass(value, kinds)


def _names(room: ModuleType) -> set[str]:
    """What a loss or a metric may be called: classes in both spellings, and functions."""
    public = {name for name in dir(room) if callable(getattr(room, name)) and not name.startswith("_")}
    snakes = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in public}
    return {name for name in public | snakes if _has(room, name)}


def _has(room: ModuleType, name: str) -> bool:
    try:
        room.get(name)
    # What needs arguments of its own is there all the same.
    except TypeError:
        return True
    except ValueError:
        return False
    return True


def _settings(context: Context | None, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _setting(context, f"{where}.{name}", value) for name, value in settings.items()}


def _setting(context: Context | None, where: str, value: Any) -> Any:
    """A schedule of a rate, an optimizer within an optimizer, a regularizer: whatever is written as an object."""
    import keras

    if isinstance(value, list):
        return [_setting(context, where, item) for item in value]
    if not is_entry(value):
        return value
    rooms = (keras.optimizers.schedules, keras.optimizers, keras.losses, keras.metrics, keras.regularizers)
    name = str(value["class_name"])
    fitting = [room for room in rooms if name.lower() in {item.lower() for item in dir(room)}]
    return made(context, where, value, fitting[0] if fitting else rooms[0])


def _with_settings(found: Any, where: str, name: str, settings: Mapping[str, Any]) -> Any:
    """An object of a class. A function is what is named itself, or makes it, as its parameters say."""
    if inspect.isclass(found) or not callable(found):
        return make(found, where, name, settings)
    needed = [item for item in inspect.signature(found).parameters.values() if _is_needed(item, settings)]
    if len(needed) < 2 and not any(item.kind is item.VAR_POSITIONAL for item in needed):
        return make(found, where, name, settings)
    # It takes the labels and what was predicted.
    return functools.update_wrapper(functools.partial(found, **settings), found) if settings else found


def _is_needed(parameter: inspect.Parameter, settings: Mapping[str, Any]) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return parameter.kind is parameter.VAR_POSITIONAL
    return parameter.default is parameter.empty and parameter.name not in settings
