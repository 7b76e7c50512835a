"""The Hydra app: composes experiments from the command line and hands them to `launch`; errors end here, once."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from truba_runner.config import Experiment, detect_cluster
from truba_runner.config_errors import FOREIGN, refuse_foreign_config, translated, unknown_keys
from truba_runner.errors import Failed, Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.launch import absolute, check, launch
from truba_runner.shipped import shipped
from truba_runner.sweeps.sweeper_job import SweeperSubmitted
from truba_runner.tell import Outcome

# Keys of the command line without which `truba stage` would put a file somewhere else, or another one.
_SAY_WHERE_DATA_LIES = {"cluster", "cluster.scratch", "cluster.data_folder", "data.folder", "data.name"}


def register() -> None:
    """Tells Hydra of the schema and of the resolvers that `conf/` uses."""
    ConfigStore.instance().store(name="schema", node=Experiment)
    OmegaConf.register_new_resolver("detect_cluster", detect_cluster, replace=True)
    OmegaConf.register_new_resolver("user", getpass.getuser, replace=True)


def main(arguments: Sequence[str]) -> int:
    """Runs the app on Hydra's own command line; returns the exit status.

    Raises:
        Refused: the command line or a config is wrong.
        Failed: a job could not be submitted.
    """
    register()
    outcomes: list[Outcome] = []
    raised: list[Exception] = []

    def run_one(config: DictConfig) -> None:
        try:
            outcomes.append(launch(typed(config), selector(HydraConfig.get())))
        except Exception as error:  # Hydra prints a line of its own about one that gets through it.
            raised.append(error)

    refuse_foreign_config()
    sys.argv[1:] = arguments
    # Hydra then raises instead of printing an error of its own and exiting with 1.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")(run_one)()
        if raised:
            raise raised[0]
    except SweeperSubmitted:
        return 0
    except FOREIGN as error:
        if wants_traceback:
            raise
        raise Refused(*_all_that_is_wrong(arguments, translated(error))) from error
    return 1 if any(outcome.action == "failed" for outcome in outcomes) else 0


def _all_that_is_wrong(overrides: Sequence[str], first: Problem) -> list[Problem]:
    """What is wrong with each override, and with what the others come to; `first` is what Hydra has stopped at.

    That alone where the rest hangs on it: a choice of a group, or an option of Hydra's.
    """
    problems, good = [first], list[str]()
    if any(text.startswith("-") for text in overrides):
        return problems
    with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        for text in overrides:
            try:
                hydra.compose("config", [*good, text])
            except FOREIGN as error:
                if "." not in text.partition("=")[0]:
                    return problems
                problems.append(translated(error))
            else:
                good.append(text)
        with suppress(Failed, *FOREIGN):
            try:
                check(absolute(typed(hydra.compose("config", good))))
            except Refused as refused:
                problems += refused.problems
    return list(dict.fromkeys(problems))


def composed(overrides: Sequence[str]) -> Experiment:
    """The experiment that these overrides compose to, its folders absolute; nothing is launched.

    Raises:
        Refused: an override or a config is wrong.
    """
    register()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return absolute(typed(hydra.compose("config", list(overrides))))
    except FOREIGN as error:
        raise Refused(translated(error)) from error


def typed(config: DictConfig) -> Experiment:
    """A composed config as dataclasses.

    Raises:
        Refused: no experiment was chosen.
    """
    if OmegaConf.is_missing(config, "name"):
        remedy = _("Type +experiment=NAME.") + " " + _experiments()
        raise Refused(Problem(_("no experiment"), _("a run needs one."), remedy))
    if unknown := unknown_keys(config):
        raise Refused(*unknown)
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)  # noqa: S101  # conf/config.yaml begins with the schema.
    return experiment


def selector(config: Any) -> str:
    """How the user chose the experiment, for a remedy to repeat. `config` is the composed `hydra` node."""
    chosen = config.runtime.choices.get("experiment")
    where = [word for word in config.overrides.task if word.lstrip("+").partition("=")[0] in _SAY_WHERE_DATA_LIES]
    return shlex.join([f"+experiment={chosen}", *where]) if chosen else ""


def _experiments() -> str:
    folders = (Path.cwd() / "conf" / "experiment", shipped("conf") / "experiment")
    names = {file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")}
    return nearest("", names)
