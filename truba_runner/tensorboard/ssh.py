"""One ssh connection to a login node, shared by several commands, with the user's own ssh and its configuration.

The user authenticates once. Host keys are checked as the user's configuration says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _

# The first OpenSSH that can forward a Unix socket.
_OLDEST = (6, 7)
# ssh's exit status if it could not connect or lost the connection.
NO_CONNECTION = 255
# A shell's exit status if it does not find the command.
NOT_FOUND = 127
# ServerAliveInterval, unless the user's configuration sets it: ssh notices a dead connection after three of them.
_ALIVE_EVERY_SECONDS = 10
_LONGEST_FOLDER = 60
# Longest time from the end of a command, when its connection was lost, until the connection's own ssh ends.
_END_SECONDS = 2
# Pauses before connecting again.
_PAUSES_SECONDS = (1, 2, 4, 8, 15, 30)
# A command that waits until its input is closed.
_NOTHING = "cat >/dev/null"


def check(login: str) -> str:
    """Check and return the name of a login node, as a user types it after ssh.

    Raises:
        truba_runner.errors.Refused: it is not a valid host name for ssh.
        truba_runner.errors.Failed: ssh is not installed or too old.
    """
    if not re.fullmatch(r"[^\s:/-][^\s:/]*", login):
        raise Refused(
            Problem(
                f"--from {login}",
                _("this is not a name for ssh."),
                _("Write it as you type it after ssh: LOGIN or USER@HOST."),
            )
        )
    try:
        output = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=20, check=False).stderr
    except FileNotFoundError as error:
        raise Failed("there is no ssh on this machine; install OpenSSH's client") from error
    found = re.search(r"OpenSSH\w*_(\d+)\.(\d+)", output)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        raise Failed(
            "this machine's {program} cannot forward a Unix socket; OpenSSH can since 6.7. Update it, or copy the "
            "files instead: truba pull, or --pull",
            program=output.split(",")[0].strip(),
        )
    return login


class Connection:
    """An ssh master connection, which other ssh commands share."""

    def __init__(self, login: str) -> None:
        """Prepare the connection; `open` connects."""
        self.login = login
        # The path of a socket must be short, and TMPDIR may be long.
        parent = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="truba-", dir="/tmp" if len(parent) > _LONGEST_FOLDER else None))  # noqa: S108
        self._control = self._folder / "c"
        self._settings = _settings(login)
        # A RemoteCommand in the user's configuration would replace our command. Old versions lack the option.
        own = self._settings.get("remotecommand", "none") != "none"
        self._our_command = ["-o", "RemoteCommand=none"] if own else []
        self.process: subprocess.Popen[bytes] | None = None

    def open(self, command: str = "") -> subprocess.Popen[bytes]:
        """Start connecting and run `command`, if any, on the login node.

        However this process ends, the command's standard input is closed, which ends the connection.
        """
        self._control.unlink(missing_ok=True)
        options = [*self._own_options(), "-M", "-S", str(self._control)]
        # Ctrl-C is left to this process, which closes the connection; at a password prompt ssh handles it itself.
        self.process = subprocess.Popen(
            ["ssh", *options, "--", self.login, command or _NOTHING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if command else subprocess.DEVNULL,
            preexec_fn=_deaf_to_ctrl_c,
        )
        return self.process

    def wait_until_open(self) -> bool:
        """Wait while ssh connects and prompts the user; return whether it connected."""
        while not self._control.exists():
            if self.process is None or self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def alive(self) -> bool:
        """Return whether the connection is open, as far as ssh knows."""
        return self.process is not None and self.process.poll() is None and self._control.exists()

    def is_gone(self) -> bool:
        """Return whether the connection was lost when a command ended with 255, which a killed command also gives."""
        deadline = time.monotonic() + _END_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.alive()

    def forward(self, port: int, remote: str) -> bool:
        """Forward a local port to a Unix socket on the login node; return False if ssh refuses, as for a taken port."""
        done = self._control_command("forward", ["-L", f"127.0.0.1:{port}:{remote}"])
        return done.returncode == 0

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command over the connection; its stderr goes to the terminal."""
        argv = [*self.transport(), "--", self.login, command]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)

    def transport(self) -> list[str]:
        """Return the ssh command that uses this connection and never opens its own."""
        over_it = ["-S", str(self._control), "-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        return ["ssh", "-T", "-a", "-x", "-o", "ClearAllForwardings=yes", *over_it, *self._our_command]

    def close(self) -> None:
        """Close the connection, cleanly if possible, and wait until its process has exited."""
        process = self.process
        if process is not None:
            # The remote command sees the end of its input and exits.
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
        """Return this connection."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connection and delete its folder."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _control_command(self, what: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        # Ignore the user's configuration: its forwardings would be requested along with ours.
        argv = ["ssh", "-F", os.devnull, "-S", str(self._control), "-O", what, *options, "--", self.login]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def _own_options(self) -> list[str]:
        """Return options: no terminal, no agent or X11 forwarding, no forwardings but ours, notice dead connections."""
        options = ["-T", "-a", "-x", "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes"]
        if self._settings.get("serveraliveinterval", "0") == "0":
            options += ["-o", f"ServerAliveInterval={_ALIVE_EVERY_SECONDS}"]
        return [*options, *self._our_command]


def _settings(login: str) -> Mapping[str, str]:
    """Return ssh's settings for a login node by lower-case option name; empty if ssh is too old to print them."""
    done = subprocess.run(["ssh", "-G", "--", login], capture_output=True, text=True, timeout=30, check=False)
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def _close(stream: IO[Any] | None) -> None:
    if stream is not None:
        with suppress(OSError):  # The process has exited with input still unread.
            stream.close()


def _deaf_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pause_seconds(attempt: int) -> int:
    """Return how long to wait before the next connection, after this many in vain."""
    return _PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)]


def announce(mark: str, value: Any) -> None:
    """Print a line on the login node for the user's machine, which knows it by its mark: a shell may print others."""
    print(mark + json.dumps(value), flush=True)


def announced(mark: str, lines: Iterable[str]) -> Iterator[Any]:
    """Yield what `announce` has printed on the login node with this mark."""
    return (json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark))


def not_found(login: str) -> str:
    """Return the message for a login node that has no truba on the PATH."""
    return _(
        "{login} does not find truba: a command over ssh has another PATH than a terminal. Give the command that "
        "starts it there with --far-command 'COMMAND' or TRUBA_FAR_COMMAND, for example '. /etc/profile; module load "
        "NAME; python3 truba.pyz' with a module of that machine (module avail lists them there).",
        login=login,
    )


def far_command(given: str | None) -> str:
    """Return the command that starts truba on the login node: `given`, else TRUBA_FAR_COMMAND, else `truba`."""
    return given or os.environ.get("TRUBA_FAR_COMMAND") or "truba"
