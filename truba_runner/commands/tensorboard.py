"""`truba tensorboard [RUN|SWEEP|EXPERIMENT…]`: show curves in a browser, from here or, with --from, a login node."""

from __future__ import annotations

import argparse
import getpass
import shlex
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from truba_runner.commands import parser
from truba_runner.errors import Problem, Refused
from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.status.printing import print_json
from truba_runner.tensorboard import chosen, pulling, server, ssh, tunnel
from truba_runner.tensorboard.feed import event_folders, without_tensorflow
from truba_runner.tensorboard.sockets import PrivateSocket

# Fewer on a login node, whose memory is shared with other users.
_MOST_RUNS_FAR, _MOST_RUNS_HERE = 100, 1000
_SILENCE_SECONDS = 60.0
_PULL_EVERY_SECONDS = 5.0
_LAST_PORT = 65535


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C, the end of the session or, on a login node, until nobody views the page any more."""
    given = _options().parse_args(arguments)
    if problems := [*_problems(given)]:
        raise Refused(*problems)
    if given.login and given.pull:
        return _pulled(given)
    if given.login:
        return _from_login(given)
    if given.tunnel or server.far():
        return _on_private_socket(given)
    return _here(given)


def _options() -> argparse.ArgumentParser:
    options = parser(
        "tensorboard",
        _("Shows the curves of runs in a browser. On a login node, serves them on a socket that only you can open."),
    )
    options.add_argument("run", nargs="*", help=_("runs, sweeps, searches or experiments (default: all runs)"))
    options.add_argument(
        "--from",
        dest="login",
        metavar="LOGIN",
        help=_("show runs on this login node, written as you type it after ssh"),
    )
    options.add_argument(
        "--pull", action="store_true", help=_("with --from: copy the files, keep them up to date, and serve them here")
    )
    options.add_argument(
        "--into", type=Path, metavar=_("FOLDER"), help=_("with --pull: folder to copy to (default: as truba pull)")
    )
    options.add_argument("--port", type=int, help=_("the port on this machine (default: 6006, or any free one)"))
    options.add_argument("--no-browser", action="store_true", help=_("do not open a browser; print the address"))
    options.add_argument(
        "--max-runs", type=int, metavar="N", help=_("show the newest N runs (default: 1000; on a login node 100)")
    )
    options.add_argument(
        "--idle-minutes",
        type=float,
        metavar="M",
        help=_("on a login node: stop when nobody has viewed the page for M minutes"),
    )
    options.add_argument(
        "--far-command",
        metavar=_("COMMAND"),
        help=_("with --from: command that starts truba on the login node (default: truba)"),
    )
    options.add_argument("--tunnel", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--silence-seconds", type=float, default=_SILENCE_SECONDS, help=argparse.SUPPRESS)
    return options


def _problems(given: argparse.Namespace) -> Iterator[Problem]:
    if given.pull and not given.login:
        yield Problem("--pull", _("no login node is given."), _("Add --from LOGIN."))
    if given.port is not None and not 1 <= given.port <= _LAST_PORT:
        remedy = _("Leave it out, or choose one from 1024 on.")
        yield Problem(f"--port {given.port}", _("ports are numbered from 1 to {last}.", last=_LAST_PORT), remedy)
    if given.max_runs is not None and given.max_runs < 1:
        yield Problem(f"--max-runs {given.max_runs}", _("this is the number of runs to show."), _("Give 1 or more."))
    if given.idle_minutes is not None and not given.idle_minutes >= 0:
        rule = _("this is the number of minutes without a viewer after which the server stops.")
        yield Problem(f"--idle-minutes {given.idle_minutes:g}", rule, _("Give 0 (never) or more."))


def _listed(given: argparse.Namespace, most: int) -> list[chosen.Shown]:
    return chosen.named(chosen.choose(given.run, given.runs)[: given.max_runs or most])


def _here(given: argparse.Namespace) -> int:
    most = _MOST_RUNS_HERE
    _say_what_is_left_out(given, most)
    with server.loopback(given.port) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.serve(listening, lambda: _listed(given, most), lambda: _show(given, url))
    return 0


def _on_private_socket(given: argparse.Namespace) -> int:
    without_tensorflow()
    server.stay_small()
    _say_what_is_left_out(given, _MOST_RUNS_FAR)
    place = PrivateSocket([*given.run, str(given.runs or ""), str(given.max_runs)])
    line = server.Line(given.silence_seconds)
    hung_up = line.dead if given.tunnel else lambda: False
    if not place.take():
        if not given.tunnel:
            print(
                _("a server for these runs is already running, process {process}", process=place.holder()),
                file=sys.stderr,
            )
            _print_way(given, place.path)
            return 0
        # Another tunnel's server exists: use that one, and take its place when it ends.
        tunnel.announce(socket=str(place.path), shared=True)
        while not place.take():
            if hung_up():
                return 0
            time.sleep(0.5)
    try:
        with place.listen() as listening:
            why = server.serve(
                listening,
                lambda: _listed(given, _MOST_RUNS_FAR),
                lambda: tunnel.announce(socket=str(place.path)) if given.tunnel else _print_way(given, place.path),
                # If the socket was deleted, nobody can reach this server, and a new one can be started.
                lambda: hung_up() or not place.path.exists(),
                given.idle_minutes if given.idle_minutes is not None else _idle_minutes(given),
            )
    finally:
        place.leave()
    if given.tunnel:
        tunnel.announce(ended=why)
    elif why == server.IDLE:
        print(_("nobody viewed the page for a while: the server has stopped"))
    return 0


def _say_what_is_left_out(given: argparse.Namespace, most: int) -> None:
    """Print how many runs are left out; also fail early on unknown runs, and print if there is nothing to show."""
    runs, shown = chosen.choose(given.run, given.runs), given.max_runs or most
    if len(runs) > shown:
        print(
            _(
                "showing the newest {shown} of {count} runs; --max-runs N shows more, and naming runs shows fewer",
                shown=shown,
                count=len(runs),
            ),
            file=sys.stderr,
        )
    _say_if_there_is_nothing(runs[:shown], str(given.runs or socket.gethostname()))


def _say_if_there_is_nothing(runs: Sequence[RunDir], where: str) -> None:
    if not runs:
        print(_("{where} has no runs yet; new ones appear once they start", where=where), file=sys.stderr)
    elif not any(event_folders(run.tensorboard) for run in runs):
        message = _("no curves yet; they appear once a run trains")
        print(message, file=sys.stderr)


def _idle_minutes(given: argparse.Namespace) -> float:
    """Return `tensorboard.idle_minutes` of the newest run's config, else the default."""
    for run in chosen.choose(given.run, given.runs)[:1]:
        with suppress(KeyError, OSError, TypeError, ValueError):
            return float(run.read_config()["tensorboard"]["idle_minutes"])
    from truba_runner.config.schema import TensorBoard

    return TensorBoard().idle_minutes


def _print_way(given: argparse.Namespace, path: Path) -> None:
    """Print the ssh command that forwards a port of the laptop to the socket."""
    login = f"{getpass.getuser()}@{socket.gethostname()}"
    port = given.port or server.DEFAULT_PORT
    way, url = f"ssh -N -L 127.0.0.1:{port}:{path} {login}", f"http://127.0.0.1:{port}/"
    if given.json:
        print_json({"socket": str(path), "ssh": way, "url": url})
    else:
        print(_("Run this on your laptop (replace the last word by the name that you type after ssh):"))
        print(f"\n  {way}\n")
        print(_("and then open {url}", url=url))
    sys.stdout.flush()


def _show(given: argparse.Namespace, url: str) -> None:
    if given.json:
        print_json({"url": url})
    else:
        print(_("TensorBoard is at {url} (Ctrl-C ends it)", url=url))
    sys.stdout.flush()
    if not given.no_browser:
        # webbrowser.open waits for some browsers until they are closed.
        threading.Thread(target=_open_page, args=(url,), name="browser", daemon=True).start()


def _open_page(url: str) -> None:
    if not webbrowser.open(url):
        print(_("no browser could be started; open {url}", url=url), file=sys.stderr, flush=True)


def _from_login(given: argparse.Namespace) -> int:
    command = [*_far_options(given), "--", *given.run]
    far = f"{ssh.far_command(given.far_command)} {shlex.join(command)}"
    with server.ended_by_signal() as ended, ssh.Connection(ssh.check(given.login)) as connection:
        tunnel.Tunnel(connection, far, given.port).hold(lambda url: _show(given, url), ended)
    return 0


def _far_options(given: argparse.Namespace) -> list[str]:
    options = ["tensorboard", "--tunnel", f"--silence-seconds={given.silence_seconds:g}"]
    options += [f"--runs={given.runs}"] if given.runs else []
    options += [f"--max-runs={given.max_runs}"] if given.max_runs else []
    options += [f"--idle-minutes={given.idle_minutes:g}"] if given.idle_minutes is not None else []
    return options


def _pulled(given: argparse.Namespace) -> int:
    """Pull files in the background, and serve the copies."""
    without_tensorflow()
    with ssh.Connection(ssh.check(given.login)) as connection:
        into = pulling.destination(given.login, given.into)
        far = ssh.far_command(given.far_command)
        puller = pulling.Puller(connection, given.run, into, far, str(given.runs or ""), checkpoints=False)
        puller.first()
        _say_if_there_is_nothing(chosen.with_trials(puller.runs()), given.login)
        with puller.following(_PULL_EVERY_SECONDS), server.loopback(given.port) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            most = given.max_runs or _MOST_RUNS_HERE
            list_runs = lambda: chosen.named(chosen.with_trials(puller.runs())[:most])  # noqa: E731
            server.serve(listening, list_runs, lambda: _show(given, url))
    return 0
