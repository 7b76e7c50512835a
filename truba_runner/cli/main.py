"""Run the command line of `truba` or `python -m truba_runner`: a management command, or the Hydra app."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from truba_runner import terminal
from truba_runner.errors import Failed, Problem, Refused, nearest
from truba_runner.language import _


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0 done, 1 a job or a check failed, 2 the input was refused."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with terminal.guarded():
        return _status(given)


def _status(given: list[str]) -> int:
    try:
        status = _run(given)
        # Flush here, not when Python exits: the reader of a pipe may have ended, which is handled below.
        sys.stdout.flush()
        return status
    except Refused as refused:
        for problem in refused.problems:
            print(problem, file=sys.stderr)
        return 2
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has ended; Python's own flush at exit must not raise another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full or read-only disk, or a path that is no folder, is the user's to fix: no traceback.
        name = error.filename or _("a file")
        print(f"{name}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(given: list[str]) -> int:
    """Run the command and return its exit status, also if it raises SystemExit, as argparse does after `--help`."""
    try:
        return _dispatch(given)
    except SystemExit as exit_request:
        if isinstance(exit_request.code, int):
            return exit_request.code
        raise


@cache
def commands() -> list[str]:
    """Return the names of the management commands: the modules of `commands/`."""
    folder = str(Path(__file__).parents[1] / "commands")
    return sorted(module.name for module in pkgutil.iter_modules([folder]))


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in commands():
        command = importlib.import_module(f"truba_runner.commands.{arguments[0]}")
        return int(command.main(arguments[1:]))
    if arguments and arguments[0].isidentifier():
        raise Refused(Problem(arguments[0], _("there is no such command."), nearest(arguments[0], commands())))
    from truba_runner.cli.app import main as app

    return app(arguments)
