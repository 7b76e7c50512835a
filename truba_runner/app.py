"""The Hydra app: composes experiments from the command line and hands them to `launch`; errors end here, once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from truba_runner.composed import absolute, register, selector, typed
from truba_runner.config_errors import FOREIGN, refuse_foreign_config, translated
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import chosen
from truba_runner.launch import check, launch
from truba_runner.shipped import shipped
from truba_runner.sweeps.sweeper_job import SweeperSubmitted
from truba_runner.tell import Outcome


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
            outcomes.append(launch(absolute(typed(config)), selector(HydraConfig.get())))
        except Exception as error:  # Hydra prints a line of its own about one that gets through it.
            raised.append(error)

    refuse_foreign_config()
    sys.argv[1:] = [*arguments, *_help_in_the_users_language(arguments)]
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


def _help_in_the_users_language(arguments: Sequence[str]) -> list[str]:
    """What Hydra is told beside the arguments where they ask for its help: conf/hydra/help."""
    asked = not {"--help", "-h"}.isdisjoint(arguments)
    return ["hydra/help=truba_tr"] if asked and chosen() == "tr" else []


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
