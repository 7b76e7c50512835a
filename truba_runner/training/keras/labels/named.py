"""Make the objects that the config names: Keras' and the job's by name, any other by import path.

Optimizers, schedules, losses, metrics and callbacks are written as `NAME` or `{class_name: NAME, config: {...}}`; a
value in `config` may have that form too. The job's own take precedence over Keras' of the same name.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from truba_runner.errors import Failed, nearest
from truba_runner.training.backend import Context
from truba_runner.training.job_calls import entry_of, imported, make

# For these, compile() picks the variant that fits the labels.
_BY_LABELS = {"accuracy", "acc", "crossentropy", "ce"}


def is_entry(value: Any) -> bool:
    """Return whether a value is written as `{class_name: ...}`."""
    return isinstance(value, Mapping) and "class_name" in value


def made(context: Context | None, where: str, given: Any, room: ModuleType) -> Any:
    """Return the object or function that `given` names; a plain name of Keras' stays a name.

    `where` is the place in the config, `room` the Keras module to search, such as keras.losses.

    Raises:
        truba_runner.errors.Failed: nothing has this name, or it does not take these settings.
    """
    name, settings = entry_of(where, given, "NAME")
    own = _own(context, where, name)
    if own is None and not is_entry(given):
        return _known(context, where, name, room)
    found = own or _class_of(context, where, name, room)
    return _with_settings(found, where, name, _settings(context, where, settings))


def make_class(context: Context | None, where: str, given: Any, room: ModuleType) -> Any:
    """Return what `made` does, but always an object, never a name.

    Raises:
        truba_runner.errors.Failed: as `made`.
    """
    return made(context, where, given if is_entry(given) else {"class_name": given}, room)


def _own(context: Context | None, where: str, name: str) -> Any:
    """Return what has this import path, or is the job's; None: it can only be Keras'."""
    if context is None:
        return None
    if "." in name:
        return imported(context, where, name)
    found = getattr(context.job, name, None)
    return found if callable(found) and not isinstance(found, ModuleType) else None


def _known(context: Context | None, where: str, name: str, room: ModuleType) -> str:
    """Check that Keras has this name, and return it."""
    get: Callable[[Any], Any] = room.get
    if name.lower() not in _BY_LABELS:
        try:
            get(name)
        except ValueError as error:
            raise _unknown(context, where, name, _names(room)) from error
        except TypeError:
            pass  # The class needs arguments: compile() says which.
    return name


def _class_of(context: Context | None, where: str, name: str, room: ModuleType) -> Any:
    """Return the class of the Keras module `room` with this name, ignoring case."""
    classes = {item for item in dir(room) if inspect.isclass(getattr(room, item))}
    by_small = {item.lower(): item for item in classes}
    if name.lower() not in by_small:
        raise _unknown(context, where, name, classes)
    return getattr(room, by_small[name.lower()])


def _unknown(context: Context | None, where: str, name: str, valid: set[str]) -> Failed:
    own = {item for item, value in vars(context.job).items() if _may_be_meant(value)} if context else set()
    return Failed(
        "{where}: Keras has no {name!r}. {nearest} Names of the job's own file can be written as they are, names "
        "of other modules with their path: mypackage.mymodule.NAME.",
        where=where,
        name=name,
        nearest=nearest(name, valid | own),
    )


def _may_be_meant(value: Any) -> bool:
    import keras

    kinds = (keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer, keras.callbacks.Callback)
    return inspect.isclass(value) and issubclass(value, kinds)


def _names(room: ModuleType) -> set[str]:
    """Return the valid names of a loss or a metric: classes in both spellings, and functions."""
    public = {name for name in dir(room) if callable(getattr(room, name)) and not name.startswith("_")}
    snakes = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in public}
    return {name for name in public | snakes if _has(room, name)}


def _has(room: ModuleType, name: str) -> bool:
    try:
        room.get(name)
    # The name exists, but needs arguments.
    except TypeError:
        return True
    except ValueError:
        return False
    return True


def _settings(context: Context | None, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _setting(context, f"{where}.{name}", value) for name, value in settings.items()}


def _setting(context: Context | None, where: str, value: Any) -> Any:
    """Make a value that is written as an object: a rate's schedule, an optimizer within an optimizer, a regularizer."""
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
    """Make an object of a class. A function is called to make the object, or returned itself, as its parameters say."""
    if inspect.isclass(found) or not callable(found):
        return make(found, where, name, settings)
    needed = [item for item in inspect.signature(found).parameters.values() if _is_needed(item, settings)]
    if len(needed) < 2 and not any(item.kind is item.VAR_POSITIONAL for item in needed):
        return make(found, where, name, settings)
    # A loss or metric function: it takes the labels and the predictions.
    return functools.update_wrapper(functools.partial(found, **settings), found) if settings else found


def _is_needed(parameter: inspect.Parameter, settings: Mapping[str, Any]) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return parameter.kind is parameter.VAR_POSITIONAL
    return parameter.default is parameter.empty and parameter.name not in settings
