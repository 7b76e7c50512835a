"""The Hydra app: compose experiments from the command line, launch them, and translate Hydra's errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from truba_runner.config.composing.compose import absolute, register, selector, typed
from truba_runner.config.composing.hydra_errors import (
    FOREIGN,
    of_plugin,
    of_what_was_typed,
    refuse_foreign_config,
    translated,
)
from truba_runner.config.composing.hydra_keys import Stopped, refuse_options
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import chosen
from truba_runner.launch.prepare import Checks
from truba_runner.launch.run import launch
from truba_runner.storage.package_files import shipped
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.sweeps.compose import Composer
from truba_runner.sweeps.sweeper_job import SweeperSubmitted

# Hydra's config of a command line without overrides, for a Composer.
_NOTHING_GIVEN = {"hydra": {"overrides": {"hydra": [], "task": []}, "job": {"config_name": "config"}}}


def main(arguments: Sequence[str]) -> int:
    """Run the app with Hydra's command line; return the exit status.

    Raises:
        truba_runner.errors.Refused: the command line or a config is wrong.
        truba_runner.errors.Failed: a job could not be submitted.
    """
    refuse_options(arguments)
    register()
    outcomes: list[Outcome] = []
    raised: list[Exception] = []

    def run_one(config: DictConfig) -> None:
        try:
            outcomes.append(launch(absolute(typed(config)), selector(HydraConfig.get())))
        except Exception as error:  # Kept from Hydra, which would print a line of its own about it.
            raised.append(error)

    refuse_foreign_config()
    sys.argv[1:] = [*arguments, *_help_in_the_users_language(arguments)]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with _that_raises():
            hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")(run_one)()
        if raised:
            raise raised[0]
    except SweeperSubmitted:
        return 0
    except Stopped as stopped:
        raise stopped.refused from None
    except Exception as error:
        if wants_traceback or not of_what_was_typed(error):
            raise
        raise Refused(*_all_that_is_wrong(arguments, error)) from error
    return 1 if any(outcome.action == Action.FAILED for outcome in outcomes) else 0


@contextmanager
def _that_raises() -> Iterator[None]:
    """Make Hydra raise errors in the block instead of printing them and exiting with 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _help_in_the_users_language(arguments: Sequence[str]) -> list[str]:
    """Return an additional override for Turkish help (conf/hydra/help) if help is asked for in Turkish."""
    asked = not {"--help", "-h"}.isdisjoint(arguments)
    return ["hydra/help=truba_tr"] if asked and chosen() == "tr" else []


def _all_that_is_wrong(overrides: Sequence[str], error: Exception) -> list[Problem]:
    """Return the problems of each override and of the config made by the correct ones; `error` stopped Hydra.

    The problem of `error` is returned alone if a plugin failed, or if the command line has an option of Hydra's.
    """
    # An exception that is not Hydra's own is most often about one of the keys hydra.*.
    of_hydra = [text for text in overrides if text.lstrip("+~").startswith("hydra")]
    first = translated(error, " ".join(of_hydra))
    if of_plugin(error) or any(text.startswith("-") for text in overrides):
        return [first]
    with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader(), OmegaConf.create(_NOTHING_GIVEN))
        config, problems = composer.all_but_the_wrong(overrides)
        # The composer's problems are better worded, as they name the override.
        if first not in problems and (isinstance(error, FOREIGN) or not problems):
            problems.insert(0, first)
        if config is not None:
            with suppress(Failed):
                try:
                    Checks().check(absolute(typed(config)))
                except Refused as refused:
                    problems += refused.problems
    return list(dict.fromkeys(problems))
