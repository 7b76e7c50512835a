"""One ssh connection to a login node, through the user's own ssh and its configuration, that several commands share.

It is authenticated once. Host keys are checked as the configuration says; nothing here changes that.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _

# The first that forwards a Unix socket.
_OLDEST = (6, 7)
# What ssh ends with when it has no connection (any more).
NO_CONNECTION = 255
# A shell's, where it does not find a command.
NOT_FOUND = 127
# A dead connection is noticed after three times so long, unless the user's configuration says something else.
_ALIVE_EVERY_SECONDS = 10
_LONGEST_FOLDER = 60
# A connection that is lost ends within so long of what goes over it.
_END_SECONDS = 2
# A command that does nothing until its input is closed.
_NOTHING = "cat >/dev/null"


def check(login: str) -> str:
    """The name of a login node, as a user types it after ssh.

    Raises:
        Refused: it cannot be one.
        Failed: there is no ssh, or one that is too old.
    """
    if not re.fullmatch(r"[^\s:/-][^\s:/]*", login):
        raise Refused(
            Problem(
                f"--from {login}", _("it is no name for ssh."), _("Write it as you do after ssh: LOGIN or USER@HOST.")
            )
        )
    try:
        told = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=20, check=False).stderr
    except FileNotFoundError as error:
        raise Failed(_("there is no ssh on this machine; install OpenSSH's client")) from error
    found = re.search(r"OpenSSH\w*_(\d+)\.(\d+)", told)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        raise Failed(
            _(
                "this machine's {program} cannot forward a Unix socket; OpenSSH can since 6.7. Update it, or follow "
                "the files instead: truba pull, or --pull",
                program=told.split(",")[0].strip(),
            )
        )
    return login


class Connection:
    """A master connection and what goes over it."""

    def __init__(self, login: str) -> None:
        """Connects nothing yet."""
        self.login = login
        # A socket's address is short, and TMPDIR may not be.
        parent = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="truba-", dir="/tmp" if len(parent) > _LONGEST_FOLDER else None))  # noqa: S108
        self._control = self._folder / "c"
        self._settings = _settings(login)
        # A command of the user's own for this login would be run in place of ours. Old ones do not know the option.
        own = self._settings.get("remotecommand", "none") != "none"
        self._our_command = ["-o", "RemoteCommand=none"] if own else []
        self.process: subprocess.Popen[bytes] | None = None

    def open(self, command: str = "") -> subprocess.Popen[bytes]:
        """Starts the connection, with `command` running at its other end, or nothing.

        Its input is closed when this process ends, however it ends, and with that the connection.
        """
        self._control.unlink(missing_ok=True)
        options = [*self._own_options(), "-M", "-S", str(self._control)]
        # A Ctrl-C is for us, who end it in order; while it asks for a password ssh has handlers of its own.
        self.process = subprocess.Popen(
            ["ssh", *options, "--", self.login, command or _NOTHING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if command else subprocess.DEVNULL,
            preexec_fn=_deaf_to_ctrl_c,
        )
        return self.process

    def wait_until_open(self) -> bool:
        """Waits while ssh connects and asks its user what it must; whether there is a connection."""
        while not self._control.exists():
            if self.process is None or self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def alive(self) -> bool:
        """Whether the connection is there, as far as ssh knows."""
        return self.process is not None and self.process.poll() is None and self._control.exists()

    def is_gone(self) -> bool:
        """Whether it is lost, after what went over it was: ssh says the same of a command that a signal has ended."""
        deadline = time.monotonic() + _END_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.alive()

    def forward(self, port: int, remote: str) -> bool:
        """Lets a local port lead to a Unix socket at the other end; False where the port is taken."""
        done = self._control_command("forward", ["-L", f"127.0.0.1:{port}:{remote}"])
        return done.returncode == 0

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command over it; what it complains of goes to the terminal."""
        argv = [*self.transport(), "--", self.login, command]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)

    def transport(self) -> list[str]:
        """The ssh command that goes over this connection, and makes none of its own."""
        over_it = ["-S", str(self._control), "-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        return ["ssh", "-T", "-a", "-x", *over_it, *self._our_command]

    def close(self) -> None:
        """Ends it, in order where it can be, and waits until the process is gone."""
        process = self.process
        if process is not None:
            # The command at the other end hears of it, and ends.
            _close(process.stdin)
            if process.stdout is None and process.poll() is None:
                self._control_command("exit", [])
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
            process.wait()
            _close(process.stdout)
        self.process = None

    def __enter__(self) -> Connection:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it for good."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _control_command(self, what: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-S", str(self._control), "-O", what, *options, "--", self.login]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def _own_options(self) -> list[str]:
        """No terminal, agent or display at the other end, no forwardings but ours, and a dead connection is noticed."""
        options = ["-T", "-a", "-x", "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes"]
        if self._settings.get("serveraliveinterval", "0") == "0":
            options += ["-o", f"ServerAliveInterval={_ALIVE_EVERY_SECONDS}"]
        return [*options, *self._our_command]


def _settings(login: str) -> Mapping[str, str]:
    """What the user's configuration says of a login, by option; nothing where ssh is too old to tell."""
    done = subprocess.run(["ssh", "-G", "--", login], capture_output=True, text=True, timeout=30, check=False)
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def _close(stream: IO[Any] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except OSError:  # The other end went first.
            pass


def _deaf_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def not_found(login: str) -> str:
    """What to do where the far end has no truba on the PATH."""
    return _(
        "{login} does not find truba: a command over ssh has another PATH than a terminal. Say how it is started "
        "there, with --far-command 'COMMAND' or TRUBA_FAR_COMMAND, as in 'module load apps/truba-ai/cpu-2024.0; "
        "python3 truba.pyz'.",
        login=login,
    )


def far_command(given: str | None) -> str:
    """How truba is started at the other end: as told, or as TRUBA_FAR_COMMAND says, or simply by its name."""
    return given or os.environ.get("TRUBA_FAR_COMMAND") or "truba"
