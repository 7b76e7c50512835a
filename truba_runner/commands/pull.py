"""`truba pull RUN… [--follow] [--from LOGIN]`: copy runs from a login node to this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from truba_runner.commands import parser
from truba_runner.errors import Problem, Refused
from truba_runner.language import _
from truba_runner.status.printing import print_json
from truba_runner.status.slurm_jobs import known_jobs
from truba_runner.tensorboard import listing, pulling, server, ssh

_EVERY_SECONDS, _LEAST_SECONDS = 10.0, 0.5


def main(arguments: Sequence[str]) -> int:
    """Copy new files; with --follow, repeat until the runs have ended or Ctrl-C."""
    given = _options().parse_args(arguments)
    if given.list:
        ssh.announce(listing.MARK, listing.listing(given.run, given.runs, known_jobs))
        return 0
    if problems := [*_problems(given)]:
        raise Refused(*problems)
    with ssh.Connection(ssh.check(given.login)) as connection:
        into, far = pulling.destination(given.login, given.into), ssh.far_command(given.far_command)
        puller = pulling.Puller(connection, given.run, into, far, str(given.runs or ""), given.checkpoints)
        puller.first()
        _tell(puller, given.json)
        if given.follow:
            with server.ended_by_signal() as ended:
                puller.follow(given.every_seconds, ended)
    return 0


def _problems(given: argparse.Namespace) -> Iterator[Problem]:
    if not given.login:
        remedy = _("Add --from LOGIN, with the name that you type after ssh, or set TRUBA_LOGIN.")
        yield Problem("pull", _("no login node is given."), remedy)
    if not given.run:
        yield Problem("pull", _("no run is named."), _("Name runs, sweeps, searches or experiments."))
    if not given.every_seconds >= _LEAST_SECONDS:
        rule = _("the login node may be asked at most once in {least} s.", least=_LEAST_SECONDS)
        yield Problem(
            f"--every-seconds {given.every_seconds:g}", rule, _("Leave it out (default: 10), or give a larger number.")
        )


def _options() -> argparse.ArgumentParser:
    options = parser("pull", _("Copies runs from a login node: event files, plots, history, result and config."))
    options.add_argument("run", nargs="*", help=_("runs, sweeps, searches or experiments at the login node"))
    login = os.environ.get("TRUBA_LOGIN")
    options.add_argument(
        "--from", dest="login", metavar="LOGIN", default=login, help=_("the login node, as you type it after ssh")
    )
    options.add_argument("-f", "--follow", action="store_true", help=_("keep copying until the runs have ended"))
    options.add_argument("--checkpoints", action="store_true", help=_("copy checkpoints too"))
    options.add_argument(
        "--into", type=Path, metavar=_("FOLDER"), help=_("folder to copy to (default: ~/truba_pulled/LOGIN)")
    )
    options.add_argument(
        "--every-seconds",
        type=float,
        default=_EVERY_SECONDS,
        metavar="S",
        help=_("with --follow: seconds between two copies (default: 10)"),
    )
    options.add_argument(
        "--far-command", metavar=_("COMMAND"), help=_("command that starts truba on the login node (default: truba)")
    )
    options.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    return options


def _tell(puller: pulling.Puller, as_json: bool) -> None:
    runs = puller.runs()
    if as_json:
        print_json({"runs": [{"run": run.id, "directory": str(run.path)} for run in runs]})
    else:
        for run in runs:
            print(f"{run.id}\n  {run.path}")
    sys.stdout.flush()
