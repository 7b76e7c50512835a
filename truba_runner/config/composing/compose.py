"""Compose an experiment from `conf/` and overrides with Hydra, as dataclasses; imports nothing that launches it."""

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
from truba_runner.config.omegaconf_private import to_object
from truba_runner.config.schema import Experiment, detect_cluster
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _, as_started
from truba_runner.storage.package_files import config_names, shipped

# Overrides that decide which file `truba stage` fetches, and to where.
_SAY_WHERE_DATA_LIES = {"cluster", "cluster.scratch", "cluster.data_folder", "data.folder", "data.name"}


def register() -> None:
    """Register the schema and the resolvers that `conf/` uses with Hydra."""
    ConfigStore.instance().store(name="schema", node=Experiment)
    OmegaConf.register_new_resolver("detect_cluster", detect_cluster, replace=True)
    OmegaConf.register_new_resolver("env_or", _env_or, replace=True)
    OmegaConf.register_new_resolver("user", getpass.getuser, replace=True)
    OmegaConf.register_new_resolver("as_started", as_started, replace=True)


def _env_or(name: str, otherwise: str) -> str:
    """Return an environment variable, or `otherwise` if it is unset or, unlike `oc.env`, empty."""
    return os.environ.get(name) or otherwise


def composed(overrides: Sequence[str]) -> Experiment:
    """Compose the experiment of these overrides, with absolute folders; nothing is launched.

    Raises:
        Refused: an override or a config is wrong.
    """
    register()
    with in_words(), hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    return absolute(typed(config))


def typed(config: DictConfig) -> Experiment:
    """Convert a composed config to dataclasses.

    Raises:
        Refused: no experiment was chosen, or the config does not have the schema's shape.
    """
    if OmegaConf.is_missing(config, "name"):
        remedy = _("Type +experiment=NAME.") + " " + nearest("", config_names("experiment"))
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
    """Make the folders and the shared list of bad nodes absolute, as a job starts in another directory."""
    cluster, data = experiment.cluster, experiment.data
    if all(path.startswith("/") for path in (cluster.runs_folder, data.folder, cluster.bad_nodes or "/")):
        return experiment
    here = Path.cwd()
    cluster = replace(
        cluster,
        runs_folder=str(here / Path(cluster.runs_folder).expanduser()),
        bad_nodes=cluster.bad_nodes and str(here / Path(cluster.bad_nodes).expanduser()),
    )
    return replace(experiment, cluster=cluster, data=replace(data, folder=str(here / Path(data.folder).expanduser())))


def selector(config: Any) -> str:
    """Return the overrides that chose the experiment, for use in a remedy. `config` is the composed `hydra` node."""
    chosen = config.runtime.choices.get("experiment")
    where = [
        word for word in as_typed(config.overrides.task) if word.lstrip("+").partition("=")[0] in _SAY_WHERE_DATA_LIES
    ]
    return shlex.join([f"+experiment={chosen}", *where]) if chosen else ""


def as_typed(overrides: Any) -> list[str]:
    """Return Hydra's record of overrides as typed: interpolations in them are not resolved."""
    texts: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(text) for text in texts]
