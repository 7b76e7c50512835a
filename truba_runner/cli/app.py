"""The Hydra app: composes experiments from the command line and hands them to `launch`; errors end here, once."""

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
from truba_runner.launch.prepare import check
from truba_runner.launch.run import launch
from truba_runner.storage.package_files import shipped
from truba_runner.submission.outcome import Outcome
from truba_runner.sweeps.compose import Composer
from truba_runner.sweeps.sweeper_job import SweeperSubmitted

# A command line of no override, as a sweep's runs are composed of.
_NOTHING_GIVEN = {"hydra": {"overrides": {"hydra": [], "task": []}, "job": {"config_name": "config"}}}


def main(arguments: Sequence[str]) -> int:
    """Runs the app on Hydra's own command line; returns the exit status.

    Raises:
        Refused: the command line or a config is wrong.
        Failed: a job could not be submitted.
    """
    refuse_options(arguments)
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
    return 1 if any(outcome.action == "failed" for outcome in outcomes) else 0


@contextmanager
def _that_raises() -> Iterator[None]:
    """Within it Hydra raises, instead of printing an error of its own and exiting with 1."""
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
    """What Hydra is told beside the arguments where they ask for its help: conf/hydra/help."""
    asked = not {"--help", "-h"}.isdisjoint(arguments)
    return ["hydra/help=truba_tr"] if asked and chosen() == "tr" else []


def _all_that_is_wrong(overrides: Sequence[str], error: Exception) -> list[Problem]:
    """What is wrong with each override, and with what the others come to; `error` is what Hydra has stopped at.

    That alone where the rest hangs on it: a choice of a group, or an option of Hydra's.
    """
    # What Hydra stumbles over otherwise than by its own exceptions is most often a key of its own.
    of_hydra = [text for text in overrides if text.lstrip("+~").startswith("hydra")]
    first = translated(error, " ".join(of_hydra))
    if of_plugin(error) or any(text.startswith("-") for text in overrides):
        return [first]
    with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader(), OmegaConf.create(_NOTHING_GIVEN))
        config, problems = composer.all_but_the_wrong(overrides)
        # With the override in its place, these words are the better ones.
        if first not in problems and (isinstance(error, FOREIGN) or not problems):
            problems.insert(0, first)
        if config is not None:
            with suppress(Failed):
                try:
                    check(absolute(typed(config)))
                except Refused as refused:
                    problems += refused.problems
    return list(dict.fromkeys(problems))
