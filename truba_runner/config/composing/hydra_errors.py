"""Translate errors of Hydra, OmegaConf and YAML about a command line or a config into Problems."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from truba_runner.config.omegaconf_private import node_at
from truba_runner.errors import Failed, Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.storage.package_files import config_names, shipped

FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)
# Modules that pass user input to Hydra and OmegaConf.
_CALLERS = (
    "truba_runner.cli.app",
    "truba_runner.config.composing.compose",
    "truba_runner.config.composing.hydra_private",
    "truba_runner.sweeps.compose",
    "hydra_plugins.truba_runner.sweeper",
)


def of_what_was_typed(error: BaseException) -> bool:
    """Whether Hydra, or a library below it, raised this error because of a command line or a config.

    They also raise ValueError, TypeError, AssertionError, RecursionError and others; the module that raised one
    distinguishes it from a mistake of this package.
    """
    if isinstance(error, FOREIGN):
        return True
    frames = _modules(error)
    ours = [name for name in frames if name.startswith(("truba_runner.", "hydra_plugins.truba_runner."))]
    return bool(ours) and ours[-1] in _CALLERS and frames[-1] != ours[-1]


def _modules(error: BaseException) -> list[str]:
    """Return the names of the modules in the traceback, the raising one last."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _line in traceback.walk_tb(error.__traceback__)]


def of_plugin(error: BaseException) -> Problem | None:
    """Return a problem if another Hydra plugin of the environment raised the error, on import or at work; else None."""
    modules = _modules(error)
    plugins = [name for name in modules if name.startswith("hydra_plugins.")]
    if not plugins or plugins[-1].startswith("hydra_plugins.truba_runner."):
        return None
    rule = _("this Hydra plugin failed ({error}).", error=_said(error))
    remedy = _("Type HYDRA_FULL_ERROR=1 before the command to see where.")
    if "importlib._bootstrap" in modules[: modules.index(plugins[0])]:
        rule = _(
            "Hydra imports all plugins of the environment, and cannot import this one ({error}).", error=_said(error)
        )
        remedy = _(
            "Uninstall it, or install a version that works with this Python, {version}.", version=sys.version.split()[0]
        )
    return Problem(".".join(plugins[-1].split(".")[:2]), rule, remedy)


def _said(error: BaseException) -> str:
    return ": ".join([type(error).__name__, *str(error).rstrip(".").splitlines()[:1]])


@contextmanager
def in_words(received: str = "") -> Iterator[None]:
    """Turn Hydra's errors about user input into refusals within this context. `received`: the override in use.

    Raises:
        Refused: Hydra raised such an error.
    """
    try:
        yield
    except (Refused, Failed):
        raise
    except Exception as error:
        if not of_what_was_typed(error):
            raise
        raise Refused(translated(error, received)) from error


def translated(error: BaseException, received: str = "") -> Problem:
    """Translate an error of Hydra, OmegaConf or YAML into a problem. `received`: the override in use."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _slash, name = str(error.missing_cfg_file).rpartition("/")
        rule = _("{folder} has no such file.", folder=f"conf/{group}")
        return Problem(f"{group}={name}", rule, nearest(name, error.options))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _of_missing_file(str(error.missing_cfg_file))
    if isinstance(error, yaml.YAMLError):
        return _of_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        files = ", ".join(str(file) for file in _undecodable()) or _("a file of conf/")
        return Problem(files, _("it is not UTF-8 text."), _("Save it as UTF-8."))
    cause = error.__cause__ or error.__context__
    if isinstance(error, OmegaConfBaseException) or isinstance(cause, OmegaConfBaseException):
        return _of_key(error if isinstance(error, OmegaConfBaseException) else cause)  # type: ignore[arg-type]
    if isinstance(error, OverrideParseException):
        advice = _("Put a value with special characters in quotes: 'KEY=\"VALUE\"'.")
        return Problem(str(error.override), _("it is not a valid KEY=VALUE."), advice)
    if isinstance(error, RecursionError):
        rule = _("a value refers to itself, or is nested too deeply.")
        return Problem(
            received or _("the command line"), rule, _("Look for a key whose value contains ${KEY} of that same key.")
        )
    if not isinstance(error, FOREIGN):
        if problem := of_plugin(error):
            return problem
        rule = _("Hydra cannot use it ({error}).", error=_said(error))
        remedy = _("--help lists the groups and the keys, with valid values.")
        return Problem(received or _("the command line"), rule, remedy)
    first, *more = str(error).splitlines()
    return Problem(first.rstrip("."), _("the command line could not be read."), " ".join(more))


def _of_missing_file(path: str) -> Problem:
    """Return the problem of a missing config file, named in a defaults list or meant to replace config.yaml."""
    group, _slash, name = path.rpartition("/")
    # The file that cluster=auto stands for.
    received = (
        f"TRUBA_CLUSTER={path.removeprefix('cluster/')}"
        if path == f"cluster/{os.environ.get('TRUBA_CLUSTER')}"
        else f"{path}.yaml"
    )
    rule = _("{folder} has no such file.", folder=f"conf/{group}".rstrip("/"))
    return Problem(received, rule, nearest(name, config_names(group)))


def _of_key(error: OmegaConfBaseException) -> Problem:
    parent, key = error.parent_node, str(error.key) if error.key is not None else ""
    place = str(error.full_key or key)
    if isinstance(error, MissingMandatoryValue):
        return Problem(place, _("it has no value ('???')."), _("Set {key}=VALUE.", key=place))
    if place == "experiment":
        rule = _(
            "the experiment's file does not begin with # @package _global_, so its keys are read as experiment.KEY."
        )
        return Problem("conf/experiment/", rule, _("Make # @package _global_ the first line of the file."))
    if isinstance(parent, DictConfig) and key and key not in parent:
        # A plain mapping, such as job.options, takes any key.
        remedy = nearest(key, [str(name) for name in parent])
        if not dataclasses.is_dataclass(OmegaConf.get_type(parent)):
            remedy += " " + _("Put a + before it to add a new key.")
        return Problem(place, _("there is no such key."), remedy)
    if isinstance(parent, DictConfig) and key and isinstance(node_at(parent, [key]), ListConfig):
        return Problem(place, _("it takes a list."), _("Write it in brackets: {key}=[VALUE].", key=place))
    message = str(error).splitlines()[0].rstrip(".")
    if isinstance(error, (InterpolationKeyError, InterpolationToMissingValueError)) and "hydra." in message:
        return Problem(place or _("config"), f"{message}.", _("Hydra's own values are written ${hydra:KEY}."))
    return Problem(place or _("config"), f"{message}.", _("--cfg job prints the whole config."))


def _of_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}:{mark.line + 1}" if mark else _("a file of conf/")
    return Problem(place, _("it is not valid YAML:"), f"{getattr(error, 'problem', None) or error}.")


def _undecodable() -> Iterator[Path]:
    for file in (Path.cwd() / "conf").rglob("*.yaml"):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            yield file


def refuse_foreign_config() -> None:
    """Refuse a `conf/config.yaml` of another project in the working directory: it would replace the package's own.

    Raises:
        Refused: the file does not name this package's schema.
    """
    own = Path("conf") / "config.yaml"
    if not own.is_file() or own.resolve() == (shipped("conf") / "config.yaml").resolve():
        return
    if "schema" not in own.read_text(errors="replace"):
        raise Refused(
            Problem(
                str(own.resolve()),
                _(
                    "it would replace truba_runner's own config.yaml, but does not have its defaults. It may belong "
                    "to another project."
                ),
                _("Work in another folder, or rename this file."),
            )
        )
