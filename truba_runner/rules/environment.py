"""Validate `environment.*`."""

from __future__ import annotations

from collections.abc import Iterator

from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem, nearest
from truba_runner.language import _

KINDS = ("apptainer", "inherit", "module", "venv")


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
        for path in environment.binds:
            if "," in path:
                rule = _("Apptainer takes a comma for the end of a path.")
                yield Problem(f"environment.binds={path}", rule, _("Choose a path without a comma."))


def _path_problems(key: str, path: str, rule: str, remedy: str) -> Iterator[Problem]:
    """Report a missing or relative path. `rule`: what the path must be; `remedy`: what to do if it is not set."""
    if not path:
        yield Problem(key, _("it is not set."), remedy)
    elif not path.startswith("/"):
        if "://" in path:
            rule += " " + _("Compute nodes have no internet access to download it.")
        yield Problem(f"{key}={path}", rule, _("Write the full path, from / on."))
