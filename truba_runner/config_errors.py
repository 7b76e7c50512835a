"""What Hydra, OmegaConf and YAML have to say of a command line or a config, in the words of `errors`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.shipped import shipped

FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)


def translated(error: Exception) -> Problem:
    """One of the exceptions `FOREIGN` as a problem."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _slash, name = str(error.missing_cfg_file).rpartition("/")
        rule = _("{folder} has no such file.", folder=f"conf/{group}")
        return Problem(f"{group}={name}", rule, nearest(name, error.options))
    if isinstance(error, yaml.YAMLError):
        return _of_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        files = ", ".join(str(file) for file in _undecodable()) or _("a file of conf/")
        return Problem(files, _("it is not UTF-8 text."), _("Save it as UTF-8."))
    cause = error.__cause__ or error.__context__
    if isinstance(error, OmegaConfBaseException) or isinstance(cause, OmegaConfBaseException):
        return _of_key(error if isinstance(error, OmegaConfBaseException) else cause)  # type: ignore[arg-type]
    if isinstance(error, OverrideParseException):
        advice = _("A value with special characters stands in quotes: 'KEY=\"VALUE\"'.")
        return Problem(str(error.override), _("it is no KEY=VALUE that can be read."), advice)
    first, *more = str(error).splitlines()
    return Problem(first.rstrip("."), _("the command line could not be read."), " ".join(more))


def _of_key(error: OmegaConfBaseException) -> Problem:
    parent, key = error.parent_node, str(error.key) if error.key is not None else ""
    place = str(error.full_key or key)
    if isinstance(parent, DictConfig) and key and key not in parent:
        # A plain mapping, such as job.options, holds whatever is put there.
        remedy = nearest(key, [str(name) for name in parent])
        if not dataclasses.is_dataclass(OmegaConf.get_type(parent)):
            remedy += " " + _("With a + before it, it is a new one.")
        return Problem(place, _("there is no such key."), remedy)
    if isinstance(parent, DictConfig) and key and isinstance(parent._get_node(key), ListConfig):
        return Problem(place, _("it takes a list."), _("Write it in brackets: {key}=[VALUE].", key=place))
    message = str(error).splitlines()[0].rstrip(".")
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


def unknown_keys(config: DictConfig) -> list[Problem]:
    """Keys that a `+` on the command line added where the schema has none: they would change nothing."""
    problems = []
    for name in config:
        node = config._get_node(name)
        kind = OmegaConf.get_type(config)
        if dataclasses.is_dataclass(kind):
            valid = [field.name for field in dataclasses.fields(kind)]
            if name not in valid:
                place = str(config._get_full_key(name))
                problems.append(Problem(place, _("there is no such key."), nearest(str(name), valid)))
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            problems += unknown_keys(node)
    return problems


def refuse_foreign_config() -> None:
    """A `conf/config.yaml` in the working directory stands in for the package's own; another project's cannot.

    Raises:
        Refused: it does not begin with this package's schema.
    """
    own = Path("conf") / "config.yaml"
    if not own.is_file() or own.resolve() == (shipped("conf") / "config.yaml").resolve():
        return
    if "schema" not in own.read_text(errors="replace"):
        raise Refused(
            Problem(
                str(own.resolve()),
                _("it would stand in for truba_runner's own config.yaml, and has not its defaults: another project's?"),
                _("Work in a folder of its own, or rename it."),
            )
        )
