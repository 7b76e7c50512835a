"""Validate `environment.*`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from truba_runner.config.schema import Environment, Experiment
from truba_runner.errors import Problem, nearest
from truba_runner.language import _

KINDS = ("apptainer", "conda", "inherit", "module", "venv")
# Keys that only one kind uses, with the value that means "not given".
_OF_KIND = {
    "venv": ("venv", ""),
    "conda": ("conda", ""),
    "conda_command": ("conda", "conda"),
    "image": ("apptainer", ""),
    "binds": ("apptainer", []),
    "pass_on": ("apptainer", []),
    "apptainer": ("apptainer", "apptainer"),
}
_CONDAS = ("conda", "mamba", "micromamba")
# Kinds whose Python is started by its path or in a container, whatever a line of the set-up activates.
_BY_PATH = ("apptainer", "inherit", "venv")
_ACTIVATES = re.compile(
    r"(?:^|[;&|]\s*)(?:(?:conda|mamba|micromamba)\s+activate|(?:source|\.)\s+(?:\S*/)?activate)(?=[\s;&|]|$)", re.M
)
_VARIABLE_PATTERN = re.compile(r"[\w*?\[\]!-]+")
# Keys that a run on this machine does not use.
_OF_JOBS = ("modules", "setup_before", "setup", "python")


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report invalid settings of the environment, without looking at any disk."""
    environment = experiment.environment
    if environment.kind not in KINDS:
        yield Problem(
            f"environment.kind={environment.kind}", _("there is no such kind."), nearest(environment.kind, KINDS)
        )
        return
    if environment.kind != "inherit" and experiment.cluster.scheduler != "slurm":
        yield Problem(
            f"environment={environment.name}",
            _("a run on this machine trains with the Python that starts it."),
            _(
                "Leave it out, and start the program with the Python that you want; or choose a cluster with "
                "cluster=NAME."
            ),
        )
        return
    yield from _ignored(experiment)
    if environment.kind == "conda":
        yield from _conda_problems(environment)
    if environment.kind == "module" and not environment.modules:
        remedy = _("Set environment.modules=[NAME/VERSION].")
        yield Problem("environment.modules", _("it names no module to load."), remedy)
    if environment.kind == "venv":
        yield from _path_problems(
            "environment.venv",
            environment.venv,
            _("it must be the absolute path of the folder of a virtual environment."),
            _("Set environment.venv to the absolute path of the folder of a virtual environment."),
        )
    if environment.kind == "apptainer":
        yield from _path_problems(
            "environment.image",
            environment.image,
            _("it must be the absolute path of an image file."),
            _("Set environment.image to the absolute path of an image file."),
        )
        yield from _container_problems(environment)


def _ignored(experiment: Experiment) -> Iterator[Problem]:
    """Report keys that are set but would have no effect."""
    environment = experiment.environment
    for key, (kind, none) in _OF_KIND.items():
        if environment.kind != kind and (value := getattr(environment, key)) != none:
            rule = _(
                "it has no effect with environment.kind={kind}; only {other} uses it.",
                kind=environment.kind,
                other=kind,
            )
            remedy = _("Leave it out, or choose environment={other}.", other=kind)
            yield Problem(f"environment.{key}={_shown(value)}", rule, remedy)
    for key in _OF_JOBS if experiment.cluster.scheduler != "slurm" else ():
        if value := getattr(environment, key):
            yield Problem(
                f"environment.{key}={_shown(value)}",
                _("it has no effect: a run on this machine trains with the Python that starts it, as it is."),
                _("Leave it out, or choose a cluster with cluster=NAME."),
            )

    yield from _activated_in_vain(environment)


def _activated_in_vain(environment: Environment) -> Iterator[Problem]:
    """Report set-up lines that activate an environment whose Python the job would not use."""
    if environment.kind not in _BY_PATH or environment.python:
        return
    for key in ("setup_before", "setup"):
        for line in filter(_ACTIVATES.search, getattr(environment, key)):
            rule = _("the job would not use its Python: environment.kind={kind} has its own.", kind=environment.kind)
            remedy = _(
                "Choose environment=conda environment.conda=NAME, or environment=venv environment.venv=/FOLDER; or set "
                "environment.python=python, which is the activated one."
            )
            yield Problem(f"environment.{key}=[{line}]", rule, remedy)


def _container_problems(environment: Environment) -> Iterator[Problem]:
    for path in environment.binds:
        if "," in path:
            rule = _("Apptainer reads a comma as the end of a path.")
            yield Problem(f"environment.binds={path}", rule, _("Choose a path without a comma."))
        elif not path.startswith("/"):
            rule = _("it has no effect: only an absolute path can be bound, as /PATH or /PATH:/INSIDE.")
            yield Problem(f"environment.binds={path}", rule, _("Write the full path, from / on."))
    for name in environment.pass_on:
        if not _VARIABLE_PATTERN.fullmatch(name):
            rule = _("it has no effect: it must be the name of a variable, or a pattern such as WANDB_*.")
            remedy = _("Write export NAME=VALUE in environment.setup: the container gets what it exports.")
            yield Problem(f"environment.pass_on={name}", rule, remedy)


def _shown(value: str | list[str]) -> str:
    return value if isinstance(value, str) else f"[{', '.join(value)}]"


def _conda_problems(environment: Environment) -> Iterator[Problem]:
    chosen, remedy = environment.conda, _("Set environment.conda to the environment's name, or to its absolute path.")
    if not chosen:
        yield Problem("environment.conda", _("it is not set."), remedy)
    elif (not chosen.startswith("/") and "/" in chosen) or re.search(r"[\s~$]", chosen):
        rule = _("it must be the name of a conda environment, or its absolute path.")
        yield Problem(f"environment.conda={chosen}", rule, remedy)
    command = PurePosixPath(environment.conda_command).name
    if command not in _CONDAS:
        rule = _("it must be one of {names}, or the path of one.", names=", ".join(_CONDAS))
        yield Problem(f"environment.conda_command={environment.conda_command}", rule, nearest(command, _CONDAS))


def _path_problems(key: str, path: str, rule: str, remedy: str) -> Iterator[Problem]:
    """Report a missing or relative path. `rule`: what the path must be; `remedy`: what to do if it is not set."""
    if not path:
        yield Problem(key, _("it is not set."), remedy)
    elif not path.startswith("/"):
        if "://" in path:
            rule += " " + _("Compute nodes have no internet access to download it.")
        yield Problem(f"{key}={path}", rule, _("Write the full path, from / on."))
