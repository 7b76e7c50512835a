"""An experiment as Hydra composes it of `conf/` and overrides, as dataclasses; what launches one is not imported."""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from truba_runner.config.composing.hydra_errors import in_words
from truba_runner.config.composing.shape import wrong_keys, wrong_sections
from truba_runner.config.plain_objects import to_object
from truba_runner.config.schema import Experiment, detect_cluster
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.storage.package_files import shipped

# Keys of the command line without which `truba stage` would put a file somewhere else, or another one.
_SAY_WHERE_DATA_LIES = {"cluster", "cluster.scratch", "cluster.data_folder", "data.folder", "data.name"}


def register() -> None:
    """Tells Hydra of the schema and of the resolvers that `conf/` uses."""
    ConfigStore.instance().store(name="schema", node=Experiment)
    OmegaConf.register_new_resolver("detect_cluster", detect_cluster, replace=True)
    OmegaConf.register_new_resolver("env_or", _env_or, replace=True)
    OmegaConf.register_new_resolver("user", getpass.getuser, replace=True)


def _env_or(name: str, otherwise: str) -> str:
    """An environment variable's value; one that is empty is as good as none, which `oc.env` knows nothing of."""
    return os.environ.get(name) or otherwise


def composed(overrides: Sequence[str]) -> Experiment:
    """The experiment that these overrides compose to, its folders absolute; nothing is launched.

    Raises:
        Refused: an override or a config is wrong.
    """
    register()
    with in_words(), hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    return absolute(typed(config))


def typed(config: DictConfig) -> Experiment:
    """A composed config as dataclasses.

    Raises:
        Refused: no experiment was chosen, or the config has not the schema's shape.
    """
    if OmegaConf.is_missing(config, "name"):
        remedy = _("Type +experiment=NAME.") + " " + _experiments()
        raise Refused(Problem(_("no experiment"), _("a run needs one."), remedy))
    if wrong := list(wrong_keys(config)):
        raise Refused(*wrong)
    with in_words():
        experiment = to_object(config)
    if wrong := list(wrong_sections(experiment, Experiment)):
        raise Refused(*wrong)
    assert isinstance(experiment, Experiment)  # noqa: S101  # conf/config.yaml begins with the schema.
    return experiment


def absolute(experiment: Experiment) -> Experiment:
    """Folders as a job sees them, which starts in a directory of its own."""
    if experiment.cluster.runs_folder.startswith("/") and experiment.data.folder.startswith("/"):
        return experiment
    here = Path.cwd()
    cluster = replace(experiment.cluster, runs_folder=str(here / Path(experiment.cluster.runs_folder).expanduser()))
    folder = str(here / Path(experiment.data.folder).expanduser())
    return replace(experiment, cluster=cluster, data=replace(experiment.data, folder=folder))


def selector(config: Any) -> str:
    """How the user chose the experiment, for a remedy to repeat. `config` is the composed `hydra` node."""
    chosen = config.runtime.choices.get("experiment")
    where = [
        word for word in as_typed(config.overrides.task) if word.lstrip("+").partition("=")[0] in _SAY_WHERE_DATA_LIES
    ]
    return shlex.join([f"+experiment={chosen}", *where]) if chosen else ""


def as_typed(overrides: Any) -> list[str]:
    """Hydra's record of overrides as texts: read as a list of a config, an interpolation in one would be its value."""
    texts: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(text) for text in texts]


def _experiments() -> str:
    folders = (Path.cwd() / "conf" / "experiment", shipped("conf") / "experiment")
    names = {file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")}
    return nearest("", names)
