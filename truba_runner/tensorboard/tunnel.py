"""The user's side of `truba tensorboard --from LOGIN`: a server on the login node and a local port forwarded to it.

Both use one ssh connection. The server prints a line with the path of its socket; this side then forwards a local port
to that socket and writes a heartbeat every few seconds while it is connected.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from subprocess import Popen
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.tensorboard import ssh
from truba_runner.tensorboard.server import IDLE, LEFT, loopback
from truba_runner.tensorboard.ssh import NO_CONNECTION, NOT_FOUND, Connection, not_found

# Mark of the lines printed on the login node for this side.
MARK = "truba-tensorboard "
_CONNECTED = {"connected": True}
_HEARTBEAT_SECONDS = 2.0
# A server that ends within this many seconds, so many times in a row, is not restarted.
_SHORT_SECONDS, _SHORT_LIVES = 60.0, 4
# An sshd that may not forward to the socket refuses at once; a busy login node only answers slowly.
_ANSWER_SECONDS, _REFUSED_SECONDS, _SILENT_SECONDS = 5, 5, 60
# A shell's exit status for a command that signal N killed is 128 + N.
_SIGNALLED = 128


def announce(**about: Any) -> None:
    """Print a line on the login node for the user's side to read."""
    ssh.announce(MARK, about)


class Tunnel:
    """A server on the login node, restarted when the connection or the server is lost."""

    def __init__(self, connection: Connection, command: str, port: int | None) -> None:
        """`command` is run by the login node's shell; `port` is the local port, None for 6006 or any free one."""
        # ssh exits with 255 both without a connection and when a signal killed the command: the echo tells which.
        self._command = f"echo '{MARK}{json.dumps(_CONNECTED)}'; {command}"
        self._connection, self._wanted_port = connection, port
        self._port = 0
        self._ended = threading.Event()

    def hold(self, ready: Callable[[str], None], ended: threading.Event) -> None:
        """Keep the tunnel up until `ended` is set or the idle server exits; call `ready(url)` once.

        Raises:
            truba_runner.errors.Failed: ssh cannot connect, the server does not start, or it cannot be reached.
        """
        self._ended = ended
        short_lives = lost_in_vain = 0
        while not ended.is_set():
            began = time.monotonic()
            reason = self._one_life(ready)
            if ended.is_set():
                return
            if reason == IDLE:
                print(_("nobody viewed the page for a while: the server has stopped. The same command starts it again"))
                return
            lost_in_vain = lost_in_vain + 1 if reason is None else 0
            short_lives = short_lives + 1 if reason in {"", LEFT} and time.monotonic() - began < _SHORT_SECONDS else 0
            login = self._connection.login
            if short_lives == _SHORT_LIVES:
                raise Failed(
                    "the server on {login} ended soon after its start, {times} times in a row: perhaps the node does "
                    "not allow such processes. --pull copies the files instead.",
                    login=login,
                    times=_SHORT_LIVES,
                )
            if lost_in_vain == 0:
                print(
                    _("the connection to {login} is lost; trying again (Ctrl-C ends it)", login=login), file=sys.stderr
                )
            ended.wait(ssh.pause_seconds(lost_in_vain))

    def _one_life(self, ready: Callable[[str], None]) -> str | None:
        """Connect and serve until the end; return why it ended, "" if unknown, None if ssh could not connect again."""
        first = self._port == 0
        process = self._connection.open(self._command)
        lines = _Lines(process.stdout)
        try:
            about = lines.wait(lambda: self._comes_no_more(process))
            if self._ended.is_set():
                return ""
            if about is None:
                status = process.wait()
                lines.join()
                return self._never_came(status, lines.connected, first)
            if not self._lead_to(str(about["socket"]), process):
                return ""
            if first:
                ready(f"http://127.0.0.1:{self._port}/")
            else:
                print(_("connected again"), file=sys.stderr, flush=True)
            while process.poll() is None and not self._ended.wait(_HEARTBEAT_SECONDS):
                _beat(process)
        finally:
            self._connection.close()
            lines.join()
        # If ssh itself was killed, the server is not to blame.
        return str(lines.last.get("ended", "killed" if process.returncode < 0 else ""))

    def _comes_no_more(self, process: Popen[bytes]) -> bool:
        """Return whether to stop waiting for the server; send it a heartbeat, so that it outlives a slow start."""
        _beat(process)
        return self._ended.is_set() or process.poll() is not None

    def _never_came(self, status: int, connected: bool, first: bool) -> str | None:
        """Return what `_one_life` returns if the server did not start.

        Raises:
            truba_runner.errors.Failed: another attempt would not help.
        """
        login = self._connection.login
        if status == NO_CONNECTION and not connected:
            if not first:
                return None
            raise Failed(
                "there is no connection to {login}: ssh's error message is printed above. Does ssh {login} work? Is "
                "the VPN on?",
                login=login,
            )
        if status == NOT_FOUND:
            raise Failed(not_found(login))
        if status == NO_CONNECTION or status > _SIGNALLED or status < 0:
            return ""
        raise Failed("there is no server on {login}: its error message is printed above", login=login)

    def _lead_to(self, far_socket: str, process: Popen[bytes]) -> bool:
        """Forward a local port, always the same one after the first time, as the open page keeps requesting it.

        Return True once the server answers, False if the connection has ended or shall end.

        Raises:
            truba_runner.errors.Failed: no port is available, or the server does not answer.
        """
        candidates = [self._port] if self._port else _free_ports(self._wanted_port)
        for port in candidates:
            if self._connection.forward(port, far_socket):
                break
        else:
            if process.poll() is not None:
                return False
            message = _(
                "port {port} of this machine is not available: ssh's error message is printed above. Choose another "
                "with --port"
            )
            raise Failed(message.format(port=candidates[-1]))
        began, login = time.monotonic(), self._connection.login
        while process.poll() is None and not self._ended.is_set():
            asked = time.monotonic()
            if _answers(port):
                self._port = port
                return True
            now = time.monotonic()
            if now - asked < _ANSWER_SECONDS and now - began > _REFUSED_SECONDS:
                raise Failed(
                    "{login} does not let ssh reach the server's socket: its sshd is older than OpenSSH 6.7, or has "
                    "AllowStreamLocalForwarding switched off. --pull copies the files instead.",
                    login=login,
                )
            if now - began > _SILENT_SECONDS:
                raise Failed(
                    "The server on {login} did not answer within {seconds} s. The node may be overloaded: try again "
                    "later, or copy the files with --pull.",
                    login=login,
                    seconds=_SILENT_SECONDS,
                )
            _beat(process)
            self._ended.wait(0.2)
        return False


class _Lines:
    """Reads the lines from the login node in a thread and keeps the first and the last message."""

    def __init__(self, stream: Any) -> None:
        self.last: dict[str, Any] = {}
        self.connected = False
        self._first: dict[str, Any] | None = None
        self._come = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def wait(self, given_up: Callable[[], bool]) -> dict[str, Any] | None:
        """Return the first message; None if `given_up()` became true before it came."""
        while not self._come.wait(0.1):
            if given_up():
                self._come.wait(0.5)
                break
        return self._first

    def join(self) -> None:
        self._thread.join(5)

    def _read(self, stream: Any) -> None:
        for message in ssh.announced(MARK, (line.decode(errors="replace") for line in stream)):
            if message == _CONNECTED:
                self.connected = True
            else:
                self.last = message
                self._first = self._first or message
                self._come.set()


def _beat(process: Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101
    with suppress(OSError):  # The process has just exited; the next poll sees it.
        process.stdin.write(b".")
        process.stdin.flush()


def _free_ports(wanted: int | None) -> list[int]:
    if wanted:
        return [wanted]
    with loopback(None) as first, socket.socket() as second:
        second.bind(("127.0.0.1", 0))
        return [first.getsockname()[1], second.getsockname()[1]]


def _answers(port: int) -> bool:
    """Return whether a server answers on the local port."""
    from http.client import HTTPConnection, HTTPException

    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
        connection.request("GET", "/truba/news")
        connection.getresponse().read()
        connection.close()
        return True
    except (OSError, HTTPException):
        return False
