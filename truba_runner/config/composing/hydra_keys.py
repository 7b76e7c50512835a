"""Refuse options and keys of Hydra that would make it write files or launch otherwise; includes a Hydra callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import Container, DictConfig, OmegaConf

from truba_runner.config.composing.hydra_private import get_args_parser
from truba_runner.errors import Problem, Refused
from truba_runner.language import _, marked

# Keys of `hydra` with their values in conf/config.yaml: with others, Hydra would create folders and files.
_WRITES: dict[tuple[str, ...], str | None] = {
    ("run", "dir"): ".",
    ("sweep", "dir"): ".",
    ("sweep", "subdir"): ".",
    ("output_subdir",): None,
}
_OWN_FOLDER = marked(
    "Leave it out. cluster.runs_folder=FOLDER sets where runs are stored, name=NAME sets their name; the whole "
    "config is in the run's run.yaml."
)
# The basic launcher is allowed: it starts one run after the other, as this command would by itself.
_LAUNCHERS = ("hydra_plugins.truba_runner.", "hydra._internal.core_plugins.basic_launcher.")
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper."


class Stopped(BaseException):
    """A refusal carried through Hydra, which turns any Exception of a callback into a warning."""

    def __init__(self, refused: Refused) -> None:
        """Store the refusal to report."""
        self.refused = refused


class KeepsToItsPlaces(Callback):
    """Hydra callback that refuses a config with which Hydra would write files; named in conf/config.yaml."""

    def on_run_start(self, config: DictConfig, **_named: Any) -> None:
        """Check the config before a single run.

        Raises:
            Stopped: the config is refused.
        """
        _stop(_that_write(config.hydra))

    def on_multirun_start(self, config: DictConfig, **_named: Any) -> None:
        """Check the config before a sweep.

        Raises:
            Stopped: the config is refused.
        """
        _stop([*_that_write(config.hydra), *_of_sweeps(config.hydra)])


def refuse_options(arguments: Sequence[str]) -> None:
    """Refuse invalid options of Hydra, instead of letting argparse print its usage page.

    Raises:
        Refused: an option is unknown, has an invalid value, stands between overrides, or loads a run from a file.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        options = [text for text in arguments if text.startswith("-")]
        rule = _("Hydra's options cannot be read ({message}).", message=message)
        remedy = _("Type them before all KEY=VALUE; --hydra-help lists them.")
        raise Refused(Problem(" ".join(options), rule, remedy))

    parser.error = refuse  # type: ignore[method-assign]
    if parser.parse_args(list(arguments)).experimental_rerun is not None:
        rule = _("it would execute whatever a pickle file contains, whoever wrote it, and check nothing.")
        remedy = _("Type the run's command again to resume the run; fresh=true trains it from the beginning.")
        raise Refused(Problem("--experimental-rerun", rule, remedy))


def _stop(problems: Sequence[Problem] | Iterator[Problem]) -> None:
    if found := list(problems):
        raise Stopped(Refused(*found))


def _that_write(hydra: DictConfig) -> Iterator[Problem]:
    # Compare the values as given: their interpolations may be resolvable only in a run.
    whole: Any = OmegaConf.to_container(hydra, resolve=False)
    for path, usual in _WRITES.items():
        if (given := reduce(getitem, path, whole)) != usual:
            rule = _("a run's files are in its own directory, and Hydra must not create others.")
            yield Problem(f"hydra.{'.'.join(path)}={given}", rule, _(_OWN_FOLDER))
    for logging in ("job_logging", "hydra_logging"):
        chosen = hydra[logging]
        if isinstance(chosen, Container) and _names_a_file(OmegaConf.to_container(chosen, resolve=False)):
            rule = _("it writes a file into the working directory, and the messages of a run are in its own log.")
            yield Problem(f"hydra/{logging}", rule, _("Leave it out, or set hydra/{key}=stdout.", key=logging))


def _of_sweeps(hydra: DictConfig) -> Iterator[Problem]:
    launcher, sweeper = str(hydra.launcher._target_), str(hydra.sweeper._target_)
    if not launcher.startswith(_LAUNCHERS):
        rule = _("runs are submitted by truba_runner's own launcher, which knows the cluster's rules.")
        yield Problem(f"hydra/launcher ({launcher})", rule, _("Leave hydra/launcher out."))
    if sweeper.startswith(_BASIC_SWEEPER):
        rule = _("it writes multirun.yaml into the working directory.")
        yield Problem(
            "hydra/sweeper=basic",
            rule,
            _("Leave it out: the default sweeper tries the same values and writes no file."),
        )


def _names_a_file(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_names_a_file, value))
    return isinstance(value, dict) and ("filename" in value or any(map(_names_a_file, value.values())))
