"""Call the functions of a job's module with the config's options, and import what the config names by path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from truba_runner.errors import Failed, nearest
from truba_runner.training.backend import Context
from truba_runner.training.notes import one_line


def call(job: ModuleType, name: str, where: str, options: Mapping[str, Any], /, **given: Any) -> Any:
    """Return `job.name(**given, **options)`; `where` is the config key that the options come from.

    Exceptions of the function itself are not caught.

    Raises:
        truba_runner.errors.Failed: the module has no such function, an option is unknown to it, or one is missing.
    """
    function = getattr(job, name, None)
    if not callable(function):
        raise Failed("{file} has no function {name}: a job of this backend needs one.", file=job.__file__, name=name)
    parameters = inspect.signature(function).parameters.values()
    named = {item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    for option in options:
        if option in given or (option not in named and not takes_any):
            valid = nearest(option, named - set(given))
            raise Failed(
                "{where}.{option}: {name} in {file} takes no such option. {nearest}",
                where=where,
                option=option,
                name=name,
                file=job.__file__,
                nearest=valid,
            )
    for item in parameters:
        if item.name in named and item.default is item.empty and item.name not in {*given, *options}:
            raise Failed(
                "{where}.{option} is missing: {name} in {file} requires it.",
                where=where,
                option=item.name,
                name=name,
                file=job.__file__,
            )
    return function(**given, **options)


def accepted(function: Callable[..., Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are parameters of a function."""
    names = inspect.signature(function).parameters if function else ()
    return {name: value for name, value in options.items() if name in names}


def entry_of(where: str, given: Any, example: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings from `NAME` or `{class_name: NAME, config: {…}}`.

    Also accepts the output of keras.saving.serialize_keras_object, which names the module of the class as well.

    Raises:
        truba_runner.errors.Failed: the entry has another form; the message shows `example`, a valid name.
    """
    entry: Any = {"class_name": given} if isinstance(given, str) else given
    keys = {"class_name", "config", "module", "registered_name"}
    if not isinstance(entry, Mapping) or not set(entry) <= keys or "class_name" not in entry:
        form = f"{{class_name: {example}, config: {{patience: 3}}}}"
        raise Failed("{where}={given}: write it as {form}.", where=where, given=given, form=form)
    name = ".".join(str(part) for part in (entry.get("module"), entry["class_name"]) if part)
    return name, dict(entry.get("config") or {})


def make(found: Callable[..., Any], where: str, name: str, settings: Mapping[str, Any]) -> Any:
    """Return an object made by calling a class with its settings.

    Raises:
        truba_runner.errors.Failed: the class does not accept the settings.
    """
    try:
        return found(**settings)
    except (TypeError, ValueError) as error:
        raise Failed(
            "{where}: {name} cannot be made with {settings}: {error}",
            where=where,
            name=name,
            settings=settings,
            error=one_line(error),
        ) from error


def imported(context: Context, where: str, name: str) -> Any:
    """Return the object with the import path `name`; `where` is the config key that names it.

    Raises:
        truba_runner.errors.Failed: the module does not exist, or has no such attribute.
    """
    module_name, _dot, attribute = name.rpartition(".")
    try:
        # The job's own module is already imported, under another name.
        is_job = module_name == Path(str(context.job.__file__)).stem
        module = context.job if is_job else importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise Failed(
            "{where}: {name} cannot be imported: {error}. The module must be in the folder of the job's own file "
            "or in the job's environment.",
            where=where,
            name=name,
            error=error,
        ) from error
    if not hasattr(module, attribute):
        valid = {item for item in dir(module) if inspect.isclass(getattr(module, item))}
        raise Failed(
            "{where}: {module_name} has no {attribute}. {nearest}",
            where=where,
            module_name=module_name,
            attribute=attribute,
            nearest=nearest(attribute, valid),
        )
    return getattr(module, attribute)
